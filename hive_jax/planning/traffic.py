"""What a chip of a compiled program reads from and writes to its memory."""

from hive_jax.planning.collectives import KINDS, collectives
from hive_jax.planning.hlo import Computation, Instruction, Module

# These move nothing: they name, point into, or wait for what others have moved.
_FREE = {
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
_WINDOWS = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "get-tuple-element", "copy-done", "slice-done")


def memory_traffic(module: Module) -> float:
    """Bytes to and from HBM in one call of the program, of one chip.

    Each operation reads its operands and writes its result once; where an array is
    only sliced, or updated in place, the slice counts. Arrays in a faster memory
    (VMEM of TPUs) do not count. What arrives from other chips is written once.
    """
    own = sum(
        times * (_read(module, computation, line) + _written(module, computation, line))
        for computation, line, times in module.executed()
        if not _moves_nothing(line)
    )
    return own + sum(found.received for found in collectives(module).values())


def _moves_nothing(line: Instruction) -> bool:
    return (
        line.opcode in _FREE
        or line.opcode.endswith("-done")
        or line.opcode.removesuffix("-start") in KINDS
    )


def _in_hbm(line: Instruction) -> float:
    return sum(array.bytes for array in line.result if array.space == 0)


def _read(module: Module, computation: Computation, line: Instruction) -> float:
    if line.opcode == "copy-start":
        destination, source = line.result[:2]
        return destination.bytes if source.space == 0 else 0.0
    if line.opcode == "slice-start":
        source, destination = line.result[:2]
        return destination.bytes if source.space == 0 else 0.0
    total = 0.0
    for position, name in enumerate(line.operands):
        whole = _in_hbm(computation[name])
        if whole:
            total += min(whole, _used(module, line, position, whole))
    return total


def _used(module: Module, line: Instruction, position: int, whole: float) -> float:
    """How much of operand `position`, of `whole` bytes, an operation reads."""
    if _moves_nothing(line):
        return 0.0
    if line.opcode in _WINDOWS:
        return line.bytes if position == 0 else whole
    if line.opcode == "dynamic-update-slice":
        return 0.0 if position == 0 else whole
    if line.opcode != "fusion":
        return whole
    inside = module.computations[line.calls["calls"]]
    return _used_by_all(module, inside, inside.parameters[position], whole)


def _used_by_all(module, computation, name: str, whole: float) -> float:
    total = 0.0
    for user in computation.users[name]:
        if user.opcode in _VIEWS and user.is_root:
            return whole
        if user.opcode in _VIEWS:
            total += _used_by_all(module, computation, user.name, whole)
        else:
            total += sum(
                _used(module, user, position, whole)
                for position, operand in enumerate(user.operands)
                if operand == name
            )
    return total


def _written(module: Module, computation: Computation, line: Instruction) -> float:
    if line.opcode == "copy-start":
        return line.result[0].bytes if line.result[0].space == 0 else 0.0
    if line.opcode == "slice-start":
        return line.result[1].bytes if line.result[1].space == 0 else 0.0
    if line.opcode == "dynamic-update-slice":
        return min(_in_hbm(line), computation[line.operands[1]].bytes)
    if line.opcode != "fusion":
        return _in_hbm(line)
    inside = module.computations[line.calls["calls"]]
    results = [inside.root.name]
    if inside.root.opcode == "tuple":
        results = inside.root.operands
    if len(results) != len(line.result):
        return _in_hbm(line)
    return sum(
        min(array.bytes, _made(module, inside, name))
        for array, name in zip(line.result, results, strict=True)
        if array.space == 0
    )


def _made(module: Module, computation: Computation, name: str) -> float:
    """Bytes of `name` that are new: of an array updated in place, the update."""
    line = computation[name]
    if line.opcode in _VIEWS:
        return _made(module, computation, line.operands[0])
    if line.opcode == "dynamic-update-slice":
        return computation[line.operands[1]].bytes
    if _moves_nothing(line):
        return 0.0
    if line.opcode == "fusion" and len(line.result) == 1:
        inside = module.computations[line.calls["calls"]]
        return _made(module, inside, inside.root.name)
    return line.bytes
