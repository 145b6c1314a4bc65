"""Costs of a compiled program on each chip: collectives, and traffic to HBM."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from hive_jax.planning.hlo import Computation, Instruction, Module

COLLECTIVES = (
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
    """Sums collectives by kind over the program, each times its executions.

    An asynchronous collective is split into a start, continuations that overlap with
    other work (possibly in other loops) and an end. They share a channel id and count
    as one, with the executions of the start.
    """
    by_channel = {}
    for computation, outer, times in module.executed():
        for owner, line in _inside(module, computation, outer):
            kind = line.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", line.attributes)
            kind = _true_kind(kind, owner, line)
            # By channel: start, continuation and end of an asynchronous one are one
            # operation.
            key = kind, channel[1] if channel else line.name
            group = group_size(line, module.partitions)
            size = _group_bytes(line, group)
            received = _received_bytes(kind, size, group)
            cost = _starts_collective(owner), times, size, received
            # True > False, so that the start's executions count if there is a start.
            by_channel[key] = max(by_channel.get(key, cost), cost)
    totals = defaultdict(lambda: [0, 0.0, 0.0])
    for (kind, _), (_, times, size, received) in by_channel.items():
        for index, value in enumerate((1, size, received)):
            totals[kind][index] += times * value
    return {kind: Collective(*totals[kind]) for kind in COLLECTIVES if kind in totals}


def group_size(line: Instruction, partitions: int) -> int:
    """Returns the number of chips in a replica group.

    XLA writes groups in three ways, here two groups of 8 chips each:

    {{0,1,2,3,4,5,6,7},{8,...}}    [2,8]<=[16]    mesh['a'=2,'b'=8] {'b'}

    Args:
      line: a collective instruction.
      partitions: chips of the program, one group where the instruction lists none.
    """
    text = line.attributes
    # The product of the sizes of the axes that the group spans.
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        size = 1
        # 'a':(1)2 is a sub-axis: 2 of the devices along 'a'.
        for axis, sub_size in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2]):
            size *= int(sub_size or sizes[axis])
        return size
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    return partitions


def _inside(
    module: Module, computation: Computation, line: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yields the instruction and, if it is a fusion, the instructions inside."""
    yield computation, line
    if line.opcode == "fusion":
        fused = module.computations[line.calls["calls"]]
        for inner in fused.values():
            yield from _inside(module, fused, inner)


def _starts_collective(fused: Computation) -> bool:
    return any("AsyncCollectiveStart" in line.attributes for line in fused.values())


def _true_kind(kind: str, owner: Computation, line: Instruction) -> str:
    """XLA writes a TPU's reduce-scatter as a fusion of an all-reduce and a slice."""
    root = owner.root
    if kind == "all-reduce" and root.opcode == "dynamic-slice":
        return "reduce-scatter" if root.operands[0] == line.name else kind
    return kind


def _group_bytes(line: Instruction, group: int) -> float:
    """Returns the bytes of the array over the whole group.

    The result of a start op also carries operands and counters.
    """
    if line.opcode == "all-gather-start":
        return max(array.bytes for array in line.result)
    if line.opcode == "collective-permute-start":
        return line.result[0].bytes
    return line.bytes * (group if line.opcode.startswith("reduce-scatter") else 1)


def _received_bytes(kind: str, size: float, group: int) -> float:
    if kind == "collective-permute":
        return size
    # A chip has its own n-th of the array already.
    share = size * (group - 1) / group
    # All-reduce is a reduce-scatter and an all-gather, one after the other.
    return 2 * share if kind == "all-reduce" else share


# These move nothing: they name, point into, or wait for what others have moved.
_NO_TRAFFIC = {
    "after-all",
    "async-start",  # the computation that it calls is counted
    "async-update",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "iota",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
# These read only the slice that they return.
_WINDOWS = ("dynamic-slice", "slice", "gather")
# These pass the data of their operand through.
_VIEWS = ("bitcast", "get-tuple-element", "copy-done", "slice-done")


def memory_traffic(module: Module) -> float:
    """Returns the bytes that one chip reads from and writes to HBM in one call.

    Each operation reads its operands and writes its result once; where an array is
    only sliced, or updated in place, the slice counts. Arrays in a faster memory
    (VMEM of TPUs) do not count. What arrives from other chips is written once.
    """
    own = sum(
        times
        * (
            _bytes_read(module, computation, line)
            + _bytes_written(module, computation, line)
        )
        for computation, line, times in module.executed()
        if not _is_free(line)
    )
    return own + sum(one.received for one in collectives(module).values())


def _is_free(line: Instruction) -> bool:
    return (
        line.opcode in _NO_TRAFFIC
        or line.opcode.endswith("-done")
        or line.opcode.removesuffix("-start") in COLLECTIVES
    )


def _hbm_bytes(line: Instruction) -> float:
    return sum(array.bytes for array in line.result if array.space == 0)


def _bytes_read(module: Module, computation: Computation, line: Instruction) -> float:
    if line.opcode == "copy-start":
        destination, source = line.result[:2]
        return destination.bytes if source.space == 0 else 0.0
    if line.opcode == "slice-start":
        source, destination = line.result[:2]
        return destination.bytes if source.space == 0 else 0.0
    total = 0.0
    for position, name in enumerate(line.operands):
        operand_bytes = _hbm_bytes(computation[name])
        if operand_bytes:
            total += min(
                operand_bytes, _operand_bytes(module, line, position, operand_bytes)
            )
    return total


def _operand_bytes(
    module: Module, line: Instruction, position: int, array_bytes: float
) -> float:
    """Returns the bytes read of operand `position`, which has `array_bytes` bytes."""
    if _is_free(line):
        return 0.0
    # Operand 0 is the array; the others are indices.
    if line.opcode in _WINDOWS:
        return line.bytes if position == 0 else array_bytes
    if line.opcode == "dynamic-update-slice":
        # Updated in place: the array itself is not read.
        return 0.0 if position == 0 else array_bytes
    if line.opcode != "fusion":
        return array_bytes
    # A fusion may slice its operand: what its instructions read counts.
    inside = module.computations[line.calls["calls"]]
    return _bytes_used_by_all(module, inside, inside.parameters[position], array_bytes)


def _bytes_used_by_all(module, computation, name: str, array_bytes: float) -> float:
    total = 0.0
    for user in computation.users[name]:
        # The array itself leaves the fusion.
        if user.opcode in _VIEWS and user.is_root:
            return array_bytes
        if user.opcode in _VIEWS:
            total += _bytes_used_by_all(module, computation, user.name, array_bytes)
        else:
            total += sum(
                _operand_bytes(module, user, position, array_bytes)
                for position, operand in enumerate(user.operands)
                if operand == name
            )
    return total


def _bytes_written(
    module: Module, computation: Computation, line: Instruction
) -> float:
    if line.opcode == "copy-start":
        # copy-start returns (destination, source, ...), slice-start the reverse.
        return line.result[0].bytes if line.result[0].space == 0 else 0.0
    if line.opcode == "slice-start":
        return line.result[1].bytes if line.result[1].space == 0 else 0.0
    if line.opcode == "dynamic-update-slice":
        return min(_hbm_bytes(line), computation[line.operands[1]].bytes)
    if line.opcode != "fusion":
        return _hbm_bytes(line)
    inside = module.computations[line.calls["calls"]]
    results = [inside.root.name]
    if inside.root.opcode == "tuple":
        results = inside.root.operands
    # The arrays cannot be told apart: all of them count.
    if len(results) != len(line.result):
        return _hbm_bytes(line)
    return sum(
        min(array.bytes, _new_bytes(module, inside, name))
        for array, name in zip(line.result, results, strict=True)
        if array.space == 0
    )


def _new_bytes(module: Module, computation: Computation, name: str) -> float:
    """Returns the written bytes of `name`: for an in-place update, the update alone."""
    line = computation[name]
    if line.opcode in _VIEWS:
        return _new_bytes(module, computation, line.operands[0])
    if line.opcode == "dynamic-update-slice":
        return computation[line.operands[1]].bytes
    if _is_free(line):
        return 0.0
    if line.opcode == "fusion" and len(line.result) == 1:
        inside = module.computations[line.calls["calls"]]
        return _new_bytes(module, inside, inside.root.name)
    return line.bytes
