"""How often a loop of compiled HLO runs: as XLA says, or as its condition does."""

import re

# A value passes through these unchanged.
_SAME = ("copy", "bitcast", "convert", "reshape")


def rounds(computation, given, loop, condition, body, computations):
    """(rounds of `loop` or None, values of its elements that the body leaves alone).

    A loop counts from a constant by a constant to a constant, as every `lax.scan`
    does; these may be passed in from outside (`given`, by index).

    Args:
      computation: where the loop stands.
      given: index -> constant, of the elements of that computation's parameter.
      loop: the `while`.
      condition, body: its computations.
      computations: all of the module, by name.
    """
    start = _elements(computation, loop.operands[0], given)
    end = body.root.operands if body.root.opcode == "tuple" else ()
    kept = {
        index: value
        for index, value in start.items()
        if index < len(end) and _index(body, end[index]) == index
    }
    known = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.attributes)
    if known:
        return int(known[1]), kept
    limit = _limit(condition, kept, computations)
    if limit is None:
        return None, kept
    index, direction, stop = limit
    step = None
    if index < len(end):
        step = _step(body, end[index], index, kept, computations)
    if step is None or index not in start:
        return None, kept
    distance = stop - start[index]
    if direction in ("LE", "GE"):
        distance += 1 if step > 0 else -1
    if distance * step < 0:
        return 0, kept
    return -(-abs(distance) // abs(step)), kept


def _elements(computation, name, given) -> dict[int, int]:
    """index -> value, of the elements of the tuple `name` that are constants."""
    line = computation[name]
    if line.opcode != "tuple":
        return {}
    values = {i: _value(computation, op, given) for i, op in enumerate(line.operands)}
    return {index: value for index, value in values.items() if value is not None}


def _value(computation, name, given) -> int | None:
    """The integer that `name` is, if it is a constant."""
    line = _behind(computation, name)
    if line.opcode == "constant":
        found = re.fullmatch(r"-?\d+", line.argument)
        return int(found[0]) if found else None
    index = _index(computation, name)
    return given.get(index) if index is not None else None


def _behind(computation, name):
    """What `name` is a copy of."""
    line = computation[name]
    while line.opcode in _SAME:
        line = computation[line.operands[0]]
    return line


def _index(computation, name) -> int | None:
    """i, if `name` is element i of the computation's parameter."""
    line = _behind(computation, name)
    if line.opcode != "get-tuple-element":
        return None
    if computation[line.operands[0]].opcode != "parameter":
        return None
    return int(re.search(r"index=(\d+)", line.attributes)[1])


def _limit(condition, given, computations):
    """(index of the counter, direction, its limit) of "counter < limit", or None."""
    line, terms = _terms(condition, condition.root, given, computations)
    if line.opcode != "compare":
        return None
    direction = re.search(r"direction=(\w+)", line.attributes)[1]
    (left, low), (right, high) = terms
    if left is not None and high is not None:
        return left, direction, high
    if right is not None and low is not None:
        swapped = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
        return right, swapped.get(direction, direction), low
    return None


def _step(body, name, index, given, computations) -> int | None:
    """What the body adds to element `index`, whose next value is `name`."""
    line, terms = _terms(body, _behind(body, name), given, computations)
    if line.opcode not in ("add", "subtract") or len(terms) != 2:
        return None
    (left, low), (right, high) = terms
    if left == index and high is not None:
        return high if line.opcode == "add" else -high
    if right == index and line.opcode == "add":
        return low
    return None


def _terms(computation, line, given, computations):
    """(operation, (index, value) of each operand): it is element `index` of the
    computation's parameter, or the constant `value`, or neither.

    The operation is `line`, or the last one of the computation that `line` calls.
    """
    inner = None
    if line.opcode in ("fusion", "call"):
        inner = computations[line.calls.get("calls") or line.calls["to_apply"]]
        passed, line = line.operands, _behind(inner, inner.root.name)

    def term(name):
        if inner is not None:
            source = _behind(inner, name)
            if source.opcode != "parameter":
                return None, _value(inner, name, {})
            name = passed[int(source.argument)]
        return _index(computation, name), _value(computation, name, given)

    return line, [term(name) for name in line.operands]
