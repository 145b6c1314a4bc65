"""Text that somebody else has written."""

import json

from hive_jax.errors import DataError


class Broken(str):
    """What is wrong with a record, in its place."""


def is_utf8(text: str) -> bool:
    """Whether it has no half of a character, as "\\ud800" of JSON is one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_utf8(content: bytes, where: str) -> str:
    """The text of a file, without a byte order mark. Raises DataError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error}") from None


def as_json(text: str, where: str):
    """What JSON says. Raises DataError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
