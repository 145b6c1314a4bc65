"""Compiled HLO as text, read into instructions, with the number of times each runs.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it
runs, which for a scan over layers is most of the step.
"""

import dataclasses
import functools
import re
from collections import defaultdict

from hive_jax.planning import loops

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}


@dataclasses.dataclass(frozen=True)
class Array:
    """dtype[shape] in the memory of that number; 0 is HBM (a host's memory on CPUs)."""

    size: int
    itemsize: float
    space: int

    @property
    def bytes(self) -> float:
        return self.size * self.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line: `name = result opcode(operands), attributes`."""

    name: str
    opcode: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    argument: str

    @functools.cached_property
    def calls(self) -> dict[str, str]:
        """calls, to_apply, body and condition, as far as it has them."""
        return dict(_CALLS.findall(self.attributes))

    @functools.cached_property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        if self.opcode != "conditional":
            return []
        found = []
        for several, one in _BRANCHES.findall(self.attributes):
            found += re.findall(r"[\w.\-]+", several) or [one]
        return found

    @property
    def bytes(self) -> float:
        """Of the result, wherever it lies."""
        return sum(array.bytes for array in self.result)


class Computation(dict):
    """Instructions by name, in order; `root` is the last word."""

    @property
    def root(self) -> Instruction:
        return next(line for line in self.values() if line.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        lines = (line for line in self.values() if line.opcode == "parameter")
        return {int(line.argument): line.name for line in lines}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found = defaultdict(list)
        for line in self.values():
            for name in dict.fromkeys(line.operands):
                found[name].append(line)
        return found


class Module:
    """A program.

    Attributes:
      computations: by name.
      entry: the name of the first.
      partitions: devices it is compiled for.
      runs: computation -> times it runs in one call of the program; fused computations
        and reducers are not among them.
      unknown_loops: names of the loops whose number of rounds could not be read; they
        count once.
    """

    def __init__(self, text: str):
        self.computations, self.entry = _parsed(text)
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.partitions = int(partitions[1]) if partitions else 1
        self.runs: dict[str, int] = defaultdict(int)
        self.unknown_loops: set[str] = set()
        self._count(self.entry, 1, {})

    def executed(self):
        """(computation, instruction, times it runs), without fusions' insides."""
        for name, times in self.runs.items():
            computation = self.computations[name]
            for line in computation.values():
                yield computation, line, times

    def _count(self, name: str, times: int, given: dict) -> None:
        """`given`: values of the parameter's elements that stay as they are."""
        self.runs[name] += times
        computation = self.computations[name]
        for line in computation.values():
            if line.opcode == "while":
                body = self.computations[line.calls["body"]]
                condition = self.computations[line.calls["condition"]]
                rounds, inside = loops.rounds(
                    computation, given, line, condition, body, self.computations
                )
                if rounds is None:
                    self.unknown_loops.add(line.name)
                self._count(line.calls["body"], times * (rounds or 1), inside)
            elif line.opcode in ("call", "async-start") and line.calls:
                called = line.calls.get("to_apply") or line.calls["calls"]
                self._count(called, times, {})
            for branch in line.branches:
                self._count(branch, times, {})


def _parsed(text: str) -> tuple[dict[str, Computation], str]:
    computations, entry, now = {}, "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            now = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif now is not None and (start := _INSTRUCTION.match(line)):
            rest = line[start.end() :]
            end = _closing(rest) if rest.startswith("(") else rest.index(" ")
            opcode, _, inside = rest[end:].strip().partition("(")
            stop = _closing("(" + inside) - 1
            now[start[2]] = Instruction(
                name=start[2],
                opcode=opcode,
                result=_arrays(rest[:end]),
                operands=tuple(re.findall(r"%([\w.\-]+)", inside[:stop])),
                attributes=inside[stop:],
                is_root=bool(start[1]),
                argument=inside[: stop - 1],
            )
    return computations, entry


def _closing(text: str) -> int:
    """The index after the bracket that closes the first one."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    """ "(f32[2,3]{1,0}, s32[])" -> its arrays."""
    found = []
    for dtype, shape, layout in _ARRAY.findall(text):
        size = 1
        for length in filter(None, shape.split(",")):
            size *= int(length)
        bits = _BITS.get(dtype)
        if bits is None:
            bits = int(re.search(r"\d+", dtype)[0])
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(size, bits / 8, int(space[1]) if space else 0))
    return tuple(found)
