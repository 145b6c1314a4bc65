"""Parser of compiled HLO text: instructions, and how often each executes.

XLA's own cost analysis counts the body of a loop once; here it counts trip count times,
which for a scan over layers is most of the step.
"""

import dataclasses
import functools
import re
from collections import defaultdict

# Lines of HLO text: "%name (parameters) -> type {" begins a computation, "  ROOT %name
# = type opcode(...)" is an instruction.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
# dtype[sizes]{layout}; the layout names the memory space.
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)
# These pass an integer on unchanged.
_PASS_THROUGH = ("copy", "bitcast", "convert", "reshape")
# The names of all other types contain their number of bits.
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}


@dataclasses.dataclass(frozen=True)
class Array:
    """dtype[shape] in memory space `space`: 0 is HBM (host memory on a CPU)."""

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
        """Called computations: calls, to_apply, body and condition, where present."""
        return dict(_CALLS.findall(self.attributes))

    @functools.cached_property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        if self.opcode != "conditional":
            return []
        names = []
        for several, one in _BRANCHES.findall(self.attributes):
            names += re.findall(r"[\w.\-]+", several) or [one]
        return names

    @property
    def bytes(self) -> float:
        """Size of the result, in any memory space."""
        return sum(array.bytes for array in self.result)


class Computation(dict):
    """Instructions by name, in order; `root` is the result."""

    @property
    def root(self) -> Instruction:
        return next(line for line in self.values() if line.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        lines = (line for line in self.values() if line.opcode == "parameter")
        return {int(line.argument): line.name for line in lines}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        by_operand = defaultdict(list)
        for line in self.values():
            for name in dict.fromkeys(line.operands):
                by_operand[name].append(line)
        return by_operand


class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the entry computation.
      partitions: number of devices.
      runs: computation -> executions in one call of the program, without fused
        computations and reducers.
      unknown_loops: names of loops of unknown trip count; they count once.
    """

    def __init__(self, text: str):
        self.computations, self.entry = _parsed(text)
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.partitions = int(partitions[1]) if partitions else 1
        self.runs: dict[str, int] = defaultdict(int)
        self.unknown_loops: set[str] = set()
        # Constants are passed into loops: the limit of an inner one may come from
        # outside.
        self._count(self.entry, 1, {})

    def executed(self):
        """Yields (computation, instruction, executions), without the inside of fusions."""
        for name, times in self.runs.items():
            computation = self.computations[name]
            for line in computation.values():
                yield computation, line, times

    def _count(self, name: str, times: int, constants_in: dict) -> None:
        """Counts a computation; `constants_in`: index -> constant parameter element."""
        self.runs[name] += times
        computation = self.computations[name]
        for line in computation.values():
            if line.opcode == "while":
                body = self.computations[line.calls["body"]]
                condition = self.computations[line.calls["condition"]]
                trip_count, constants = _trip_count(
                    computation, constants_in, line, condition, body, self.computations
                )
                if trip_count is None:
                    self.unknown_loops.add(line.name)
                self._count(line.calls["body"], times * (trip_count or 1), constants)
            # Fusions and reducers are not entered: their instructions are one
            # operation.
            elif line.opcode in ("call", "async-start") and line.calls:
                called = line.calls.get("to_apply") or line.calls["calls"]
                self._count(called, times, {})
            # Every branch counts, an upper bound: which one runs is known only at run
            # time.
            for branch in line.branches:
                self._count(branch, times, {})


def _parsed(text: str) -> tuple[dict[str, Computation], str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif current is not None and (start := _INSTRUCTION.match(line)):
            rest = line[start.end() :]
            # The result is one type, or a tuple of types in brackets, which contain
            # spaces.
            end = _closing(rest) if rest.startswith("(") else rest.index(" ")
            opcode, _, inside = rest[end:].strip().partition("(")
            stop = _closing("(" + inside) - 1
            current[start[2]] = Instruction(
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
    """Returns the index after the bracket that closes the first one."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    """Parses the arrays of a type such as "(f32[2,3]{1,0}, s32[])"."""
    arrays = []
    for dtype, shape, layout in _ARRAY.findall(text):
        size = 1
        for length in filter(None, shape.split(",")):
            size *= int(length)
        bits = _BITS.get(dtype)
        if bits is None:
            bits = int(re.search(r"\d+", dtype)[0])
        space = re.search(r"S\((\d+)\)", layout)
        arrays.append(Array(size, bits / 8, int(space[1]) if space else 0))
    return tuple(arrays)


def _trip_count(computation, constants_in, loop, condition, body, computations):
    """Returns the trip count of a `while`, or None, and its loop-invariant constants.

    A loop counts from a constant by a constant to a constant, as every `lax.scan`
    does; these may be passed in from outside (`constants_in`, by index).

    Args:
      computation: the one that contains the loop.
      constants_in: index -> constant element of that computation's parameter.
      loop: the `while`.
      condition, body: computations that it calls.
      computations: name -> computation, of the whole module.
    """
    start = _elements(computation, loop.operands[0], constants_in)
    end = body.root.operands if body.root.opcode == "tuple" else ()
    constants = {
        index: value
        for index, value in start.items()
        if index < len(end) and _element_index(body, end[index]) == index
    }
    # XLA writes the trip count beside the loops that it has analysed.
    declared = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.attributes)
    if declared:
        return int(declared[1]), constants
    limit = _loop_limit(condition, constants, computations)
    if limit is None:
        return None, constants
    index, direction, stop = limit
    step = None
    if index < len(end):
        step = _loop_step(body, end[index], index, constants, computations)
    if step is None or index not in start:
        return None, constants
    # A loop that counts down has a negative distance and a negative step.
    distance = stop - start[index]
    if direction in ("LE", "GE"):
        distance += 1 if step > 0 else -1
    if distance * step < 0:
        return 0, constants
    # Rounded up: a step may leap over the limit.
    return -(-abs(distance) // abs(step)), constants


def _elements(computation, name, constants) -> dict[int, int]:
    """Returns index -> value for the constant elements of the tuple `name`."""
    line = computation[name]
    if line.opcode != "tuple":
        return {}
    values = {
        i: _value(computation, op, constants) for i, op in enumerate(line.operands)
    }
    return {index: value for index, value in values.items() if value is not None}


def _value(computation, name, constants) -> int | None:
    """Returns the integer value of `name` if it is a constant, else None."""
    line = _source(computation, name)
    if line.opcode == "constant":
        integer = re.fullmatch(r"-?\d+", line.argument)
        return int(integer[0]) if integer else None
    index = _element_index(computation, name)
    return constants.get(index) if index is not None else None


def _source(computation, name):
    """Follows copies from `name` to the instruction that defines its value."""
    line = computation[name]
    # Compiler passes insert copies and conversions between a counter and its use.
    while line.opcode in _PASS_THROUGH:
        line = computation[line.operands[0]]
    return line


def _element_index(computation, name) -> int | None:
    """Returns i if `name` is element i of the computation's parameter, else None."""
    line = _source(computation, name)
    if line.opcode != "get-tuple-element":
        return None
    if computation[line.operands[0]].opcode != "parameter":
        return None
    return int(re.search(r"index=(\d+)", line.attributes)[1])


def _loop_limit(condition, constants, computations):
    """(index of the counter, direction, its limit) of "counter < limit", or None."""
    line, terms = _terms(condition, condition.root, constants, computations)
    if line.opcode != "compare":
        return None
    direction = re.search(r"direction=(\w+)", line.attributes)[1]
    (left, low), (right, high) = terms
    # "counter < limit", or "limit > counter".
    if left is not None and high is not None:
        return left, direction, high
    if right is not None and low is not None:
        swapped = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
        return right, swapped.get(direction, direction), low
    return None


def _loop_step(body, name, index, constants, computations) -> int | None:
    """Returns the increment of element `index`, whose next value is `name`."""
    line, terms = _terms(body, _source(body, name), constants, computations)
    if line.opcode not in ("add", "subtract") or len(terms) != 2:
        return None
    (left, low), (right, high) = terms
    if left == index and high is not None:
        return high if line.opcode == "add" else -high
    if right == index and line.opcode == "add":
        return low
    return None


def _terms(computation, line, constants, computations):
    """(operation, (index, value) of each operand): it is element `index` of the
    computation's parameter, or the constant `value`, or neither.

    The operation is `line`, or the last one of the computation that `line` calls.
    """
    inner = None
    if line.opcode in ("fusion", "call"):
        inner = computations[line.calls.get("calls") or line.calls["to_apply"]]
        passed, line = line.operands, _source(inner, inner.root.name)

    def term(name):
        if inner is not None:
            source = _source(inner, name)
            if source.opcode != "parameter":
                return None, _value(inner, name, {})
            name = passed[int(source.argument)]
        return _element_index(computation, name), _value(computation, name, constants)

    return line, [term(name) for name in line.operands]
