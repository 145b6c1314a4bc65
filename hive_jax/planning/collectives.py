"""What the chips of a compiled program send each other."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from hive_jax.planning.hlo import Computation, Instruction, Module

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind in one call of the program.

    Attributes:
      count: how often one runs.
      bytes: of the whole arrays, as the chips of a group have them together.
      received: bytes that each chip gets from others: (n - 1) / n of an array in a
        group of n, twice that in an all-reduce, a permuted array whole.
    """

    count: int = 0
    bytes: float = 0.0
    received: float = 0.0


def collectives(module: Module) -> dict[str, Collective]:
    """kind -> its sum over the program, with loops as often as they run.

    An operation that is split into a start, continuations beside other work (in other
    loops, even) and an end is one: its parts share a channel, and the start counts.
    """
    found = {}
    for computation, outer, times in module.executed():
        for where, line in _inside(module, computation, outer):
            kind = line.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", line.attributes)
            kind = _meant(kind, where, line)
            key = kind, channel[1] if channel else line.name
            group = group_size(line, module.partitions)
            size = _whole(line, group)
            received = _received(kind, size, group)
            part = _starts(where), times, size, received
            found[key] = max(found.get(key, part), part)
    totals = defaultdict(lambda: [0, 0.0, 0.0])
    for (kind, _), (_, times, size, received) in found.items():
        for index, value in enumerate((1, size, received)):
            totals[kind][index] += times * value
    return {kind: Collective(*totals[kind]) for kind in KINDS if kind in totals}


def group_size(line: Instruction, partitions: int) -> int:
    """Chips that take part together. XLA writes groups in three ways, of 2 x 8 chips:

    {{0,1,2,3,4,5,6,7},{8,...}}    [2,8]<=[16]    mesh['a'=2,'b'=8] {'b'}
    """
    text = line.attributes
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        size = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2]):
            size *= int(part or sizes[axis])
        return size
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    return partitions


def _inside(
    module: Module, computation: Computation, line: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """The instruction, and those of the fusion that it is."""
    yield computation, line
    if line.opcode == "fusion":
        fused = module.computations[line.calls["calls"]]
        for inner in fused.values():
            yield from _inside(module, fused, inner)


def _starts(fused: Computation) -> bool:
    return any("AsyncCollectiveStart" in line.attributes for line in fused.values())


def _meant(kind: str, where: Computation, line: Instruction) -> str:
    """XLA writes a TPU's reduce-scatter as a fusion of an all-reduce and a slice."""
    root = where.root
    if kind == "all-reduce" and root.opcode == "dynamic-slice":
        return "reduce-scatter" if root.operands[0] == line.name else kind
    return kind


def _whole(line: Instruction, group: int) -> float:
    """Bytes of the array that the group has together. The result of a start carries
    operands and counters beside it."""
    if line.opcode == "all-gather-start":
        return max(array.bytes for array in line.result)
    if line.opcode == "collective-permute-start":
        return line.result[0].bytes
    return line.bytes * (group if line.opcode.startswith("reduce-scatter") else 1)


def _received(kind: str, size: float, group: int) -> float:
    if kind == "collective-permute":
        return size
    share = size * (group - 1) / group
    return 2 * share if kind == "all-reduce" else share
