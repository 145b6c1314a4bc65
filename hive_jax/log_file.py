"""Log files, which grow a record at a time: safe from full disks, kills and damage."""

import contextlib
import os
from collections.abc import Callable

from hive_jax.errors import OutputError
from hive_jax.io import output_errors, parse_json


def append_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Appends all of `content` to a file, or nothing: no reader meets half a record.

    The file is opened and closed here, so that a failed write leaves no buffer behind
    that would fail again.

    Args:
      path: the file; it and its folder are created.
      content: a complete record.

    Raises:
      OutputError: it cannot be written, e.g. because the disk is full.
    """
    with output_errors(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        # Unbuffered: on a disk that becomes full write() takes less than everything.
        with open(path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise


def read_records(
    path: str | os.PathLike, is_valid: Callable[[dict], bool]
) -> tuple[list[dict], int]:
    """Returns the valid records of a file in JSON Lines, and the number of others.

    A last line that a kill cut short is ignored. There is none without the file.

    Args:
      path: the file.
      is_valid: returns whether an object has the expected keys.

    Raises:
      OutputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            *lines, _ = file.read().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for line in lines:
        # Not UTF-8, or DataError, which is a ValueError too.
        with contextlib.suppress(ValueError):
            record = parse_json(line.decode(), str(path), dict)
            if is_valid(record):
                records.append(record)
    return records, len(lines) - len(records)
