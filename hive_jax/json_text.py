"""JSON and UTF-8 from outside, with readable errors; one class for all failures."""

import json
from collections.abc import Iterable, Mapping

from hive_jax.errors import DataError, HiveError
from hive_jax.file_content import explain_content

_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int | float: "a number",
    object: "any value",
}


def json_lines(records: Iterable) -> str:
    """Returns records as JSON Lines, one a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def decode_text(
    content: bytes, where: str, *, error: type[HiveError] = DataError
) -> str:
    """Decodes UTF-8, with or without a byte order mark.

    Args:
      content: encoded text.
      where: name of the content for messages, e.g. its path.
      error: class of the error if it is not UTF-8.
    """
    if explanation := explain_content(content):
        raise error(f"{where} {explanation}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(f"{where} is not UTF-8: {failure}") from None


def parse_json(
    text: str,
    where: str,
    kind: type | None = None,
    *,
    error: type[HiveError] = DataError,
):
    """Parses a JSON text.

    Args:
      text: the JSON.
      where: name for messages, e.g. the path.
      kind: expected type of the value, dict or list; None for any.
      error: class of the error for another type, deep nesting, a key twice in an
        object, or no JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise error(f"{where} is nested too deeply") from None
    except _RepeatedKey as failure:
        raise error(f"{where}: {failure}") from None
    except ValueError as failure:
        raise error(f"{where} is not JSON: {failure}") from None
    if kind is not None and not isinstance(value, kind):
        raise error(f"{where}: expected {_JSON_TYPES[kind]}, got {value!r:.40}")
    return value


class _RepeatedKey(Exception):
    pass


def _unique_keys(pairs: list[tuple]) -> dict:
    """The object of these (key, value) pairs, of which json would keep the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKey(f"{repeated!r} is twice in the object {value!r:.60}")
    return value


def require_types(
    record: Mapping,
    types: Mapping[str, type],
    where: str,
    *,
    error: type[HiveError] = DataError,
) -> None:
    """Checks keys of a JSON object.

    Args:
      record: the object.
      types: required key -> type of its value: dict, list, str, int | float or object.
      where: name of the object for messages, e.g. its path.
      error: class of the error for a missing key, or a value of another type.
    """
    for key, kind in types.items():
        if key not in record:
            raise error(f"{where} has no {key!r}; expected {_JSON_TYPES[kind]}")
        if not isinstance(record[key], kind):
            raise error(
                f"{where}: {key!r} is {record[key]!r:.60}; expected {_JSON_TYPES[kind]}"
            )
