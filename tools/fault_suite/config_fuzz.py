"""Configs with a wrong key or value: refused by name, or taken exactly as given."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from hive_jax.config import RunConfig, from_dict, to_dict
from hive_jax.errors import HiveError
from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
from tools.fault_suite.figure import Figure, format_counts

# All towers are given, so that their keys are there.
FULL = RunConfig(model=HiveConfig(SiglipConfig(), DecoderConfig()))
_HUGE, _NAN = 10**30, float("nan")
# Of any type; in random trees.
_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 8, 64, 1000, 2**31, 2**64, _HUGE, -_HUGE),
    *(0.0, 0.5, 1.0, -1.0, 1e-50, 1e38, 1e308, _NAN, float("inf"), float("-inf")),
    *("", "x", "auto", "float32", "hive", "../x", "gs://b/x", "\ud800", "a" * 3000),
    *(
        (),
        [],
        [[]],
        {},
        {"a": 1},
        ((1, 1),),
        ((".*", 1.0),),
        [3],
        ("a",),
        b"x",
        object(),
    ),
)


def paths(tree: Mapping, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the keys (key, ..., key) of every value that is not a group."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def get(tree: Mapping, path: tuple[str, ...]):
    """Returns the value at a path, as from `paths`."""
    for key in path:
        tree = tree[key]
    return tree


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Changes every leaf in six ways, and builds random trees.

    Args:
      count: random trees.
      folder: not used.
      cache: not used.
    """
    outcomes, failures, leaves = Counter(), [], sorted(paths(to_dict(FULL)))
    for path in leaves:
        for kind, expects_refusal, tree in _changes(path):
            outcome = _outcome(tree, ".".join(path) if kind != "typo" else "")
            outcomes[outcome] += 1
            is_wrong = outcome not in ("refused by name", "taken as given")
            if is_wrong or (expects_refusal and outcome == "taken as given"):
                failures.append(f"{'.'.join(path)}, {kind}: {outcome}")
    draw = random.Random(0)
    for number in range(count):
        outcome = _outcome(_random_tree(leaves, draw))
        outcomes[outcome] += 1
        if outcome not in ("refused by name", "taken as given"):
            failures.append(f"random tree {number}: {outcome}")
    seen = f"{len(leaves)} leaves in 6 ways, {count:,} random trees: {format_counts(outcomes)}"
    return Figure(6 * len(leaves) + count, seen, failures)


def _changes(path: tuple[str, ...]) -> Iterator[tuple[str, bool, dict]]:
    """Yields (kind, whether it must be refused, tree) of the changes of a leaf."""
    *above, key = path
    value = get(to_dict(FULL), path)
    is_number = type(value) in (int, float)
    wrong = 3 if isinstance(value, str | bool | tuple) else "3"
    # -1 is a valid value of some numbers, such as a mesh axis.
    changes = (("wrong type", True, wrong), ("None", True, None), ("NaN", True, _NAN))
    changes += (("-1", False, -1), ("huge", is_number, _HUGE))
    for kind, expects_refusal, changed in changes:
        tree = to_dict(FULL)
        get(tree, above)[key] = changed
        yield kind, expects_refusal, tree
    tree = to_dict(FULL)
    group = get(tree, above)
    group[key[: len(key) // 2] + "q" + key[len(key) // 2 :]] = group.pop(key)
    yield "typo", True, tree


def _random_tree(leaves: list[tuple[str, ...]], draw: random.Random) -> dict:
    """Returns a tree with one to four changed values or keys."""
    tree = to_dict(FULL)
    for _ in range(draw.randint(1, 4)):
        *above, key = draw.choice(leaves)
        for level in range(len(above)):
            if draw.random() < 0.05:  # a group, in place of a value in it
                above, key = above[:level], above[level]
                break
        try:
            group = get(tree, above)
            if draw.random() < 0.2:
                group[draw.choice((key + "x", key[1:], key.upper(), 7, ""))] = group[
                    key
                ]
            else:
                group[key] = draw.choice(_VALUES)
        except (KeyError, TypeError):  # below a group that has been changed before
            continue
    return tree


def _outcome(tree: dict, key: str = "") -> str:
    """Classifies what becomes of a tree.

    Args:
      tree: as for `from_dict`.
      key: that the message of a refusal must name; empty for any key.
    """
    try:
        config = from_dict(tree)
    except HiveError as error:
        message = str(error)
        named = message.startswith(f"config.{key}") or f"{key} = " in message
        # A message about two values may begin with the other one.
        group, _, name = key.rpartition(".")
        named = named or (name in message and message.startswith(f"config.{group}"))
        return "refused by name" if named else f"refused: {message}"
    except Exception as error:  # noqa: BLE001 - what is counted
        return f"{type(error).__name__}: {error}"
    changed = _differences(tree, to_dict(config))
    return f"ignored {changed}" if changed else "taken as given"


def _differences(given: Mapping, taken: Mapping, prefix: str = "") -> list[str]:
    """Returns the keys whose given values have not been taken."""
    different = []
    for key, value in given.items():
        if key not in taken:
            different.append(f"{prefix}{key}")
        elif isinstance(taken[key], dict) and isinstance(value, dict):
            different += _differences(value, taken[key], f"{prefix}{key}.")
        elif _plain(value) != _plain(taken[key]):
            different.append(f"{prefix}{key}")
    return different


def _plain(value):
    """Returns a value in the form that `to_dict` gives it."""
    if not isinstance(value, list | tuple):
        return value
    # A text that replaces a tuple arrives in one; of a rule the layers may be absent.
    if len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if len(value) == 2 and isinstance(value[0], str):
        value = (*value, ())
    return tuple(map(_plain, value))
