"""Sources as text, on the command line and in messages.

[WEIGHT*]KIND:PATH,option=value,...  joined by " + "
"""

import os
import re
from collections.abc import Callable, Sequence

from hive_jax.config import Source

_AND = " + "


def parse(text: str) -> tuple[Source, ...]:
    """Parses sources such as "2*llava:a.json,images=a.zip + 1*folder:DIR".

    Paths may contain commas and " + " if they exist. An option without a value gets an
    empty one. Kinds and options are checked by registry.checked_sources.
    """
    return tuple(_parse_one(one.strip()) for one in _split(text, _AND, _source_paths))


def _parse_one(text: str) -> Source:
    head, *options = _split(text, ",", _option_path)
    weight, star, rest = head.partition("*")
    try:
        weight = float(weight) if star else None
        head = rest if star else head
    except ValueError:  # a star that belongs to the path
        weight = None
    kind, _, path = head.partition(":")
    pairs = (option.partition("=")[::2] for option in options)
    return Source(kind, path, tuple(pairs), weight)


def _split(
    text: str, separator: str, paths_in: Callable[[str], list[str]]
) -> list[str]:
    """Splits at separators, except those in a path that exists.

    Args:
      text: the text.
      separator: between pieces.
      paths_in: returns the paths in a piece.
    """

    def is_piece(joined: str) -> bool:
        exist = (p for p in paths_in(joined) if os.path.exists(os.path.expanduser(p)))
        return sum(path.count(separator) for path in exist) == joined.count(separator)

    # Longest first: the path "a,b" exists as a whole even where "a" exists too.
    pieces, rest = [], text.split(separator)
    while rest:
        length = next(
            n for n in range(len(rest), 0, -1) if is_piece(separator.join(rest[:n]))
        )
        pieces.append(separator.join(rest[:length]))
        rest = rest[length:]
    return pieces


def _option_path(text: str) -> list[str]:
    """The path in "llava:PATH" or "images=PATH"."""
    return re.split("[:=]", text, maxsplit=1)[1:]


def _source_paths(text: str) -> list[str]:
    """The paths in "llava:PATH,images=PATH"."""
    options = _split(text, ",", _option_path)
    return [path for option in options for path in _option_path(option)]


def to_text(sources: str | Sequence[Source]) -> str:
    """Formats sources in the string form, which `parse` reads."""
    if isinstance(sources, str):
        return sources

    def one(source: Source) -> str:
        weight = "" if source.weight is None else f"{source.weight:g}*"
        head = f"{weight}{source.kind}" + (f":{source.path}" if source.path else "")
        return ",".join([head, *(f"{name}={value}" for name, value in source.options)])

    return _AND.join(map(one, sources))
