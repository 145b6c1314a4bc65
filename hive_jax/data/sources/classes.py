"""Names of the classes of labelled images."""

import collections
from collections.abc import Sequence

from hive_jax.data.class_captions import class_caption
from hive_jax.data.sources.base import MalformedRecord
from hive_jax.errors import DataError


def sorted_classes(labels: Sequence[str]) -> list[str]:
    """Returns the names that occur, numbers by value; not empty or malformed ones."""
    names = {name for name in labels if name and not isinstance(name, MalformedRecord)}
    # By value: 10 after 9. isdecimal and not isdigit: "²" is a digit that int() refuses.
    return sorted(names, key=lambda name: (name.isdecimal() and int(name), name))


def require_distinct(path: str, classes: Sequence[str]) -> None:
    """Raises DataError if two classes differ in case, spaces or underscores alone.

    Letters may: an alphabet has "A" and "a".

    Args:
      path: of the dataset, for the message.
      classes: names.
    """
    spellings = collections.defaultdict(list)
    for name in classes:
        if len(name) > 1:
            key = " ".join(name.replace("_", " ").split()).casefold()
            spellings[key].append(name)
    for same in spellings.values():
        if len(same) > 1:
            raise DataError(
                f"{path} has the classes {' and '.join(map(repr, same))}, which differ in "
                f"case, spaces or underscores alone: give them one name, or two that differ"
            )


def note_on_numbers(path: str, classes: Sequence[str], remedy: str) -> tuple[str, ...]:
    """Returns a note if classes are called by numbers, which say nothing in captions.

    Args:
      path: of the dataset, for the message.
      classes: names, in order.
      remedy: how to give names.
    """
    if not classes or not all(map(str.isdecimal, classes)):
        return ()
    caption = class_caption(classes[0])
    note = (
        f"{path}: the classes are the numbers {classes[0]} to {classes[-1]}, and captions "
        f"and prompts are as {caption!r}; if they stand for names, {remedy}"
    )
    return (note,)


def class_name(label: int, names: Sequence[str]) -> str:
    """Returns the name of class number `label`, or a MalformedRecord.

    Args:
      label: counts from 0.
      names: of all classes.
    """
    if 0 <= label < len(names):
        return names[label]
    return MalformedRecord(f"is of class {label}; expected 0 to {len(names) - 1}")
