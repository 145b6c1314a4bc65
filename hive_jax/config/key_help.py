"""Help text of config keys: values and descriptions, from the dataclasses' docstrings."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping

_WIDTH = 80


def describe_keys(values: Mapping, schema: type) -> str:
    """Returns the keys of a config, each with its value and its description.

    Args:
      values: nested dicts, as from `to_dict`.
      schema: RunConfig or ProbeConfig.
    """
    lines = []
    for key, value, description in _described(values, schema):
        lines.append(f"  --config.{key}={value}")
        lines += textwrap.wrap(
            description, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def attribute_descriptions(schema: type) -> dict[str, str]:
    """Returns the "Attributes:" section of a class's docstring, by attribute.

    Args:
      schema: a class, with lines "name: text" or "name, name: text" in that section,
        and continuation lines that are indented further.
    """
    section = inspect.getdoc(schema).partition("Attributes:\n")[2]
    descriptions = {}
    for entry in re.split(r"\n(?=  \w)", "\n" + section)[1:]:
        names, _, text = entry.partition(":")
        for name in names.split(","):
            descriptions[name.strip()] = " ".join(text.split())
    return descriptions


def _described(
    values: Mapping, schema: type, prefix: str = ""
) -> Iterator[tuple[str, object, str]]:
    """Yields key, value and description of each value in nested dicts."""
    descriptions = attribute_descriptions(schema)
    for name, kind in typing.get_type_hints(schema).items():
        choices = typing.get_args(kind)
        group = choices[0] if type(None) in choices else kind  # of X | None: X
        key, value = prefix + name, values[name]
        if dataclasses.is_dataclass(group) and value is not None:
            yield from _described(value, group, key + ".")
        else:
            yield key, value, descriptions.get(name, "")
