"""Local paths, atomic writes, and files of others with readable errors.

require_local, require_regular    a path of this machine; a file, not a pipe or device
atomic_write, atomic_dir          a file or folder appears under its name when complete
read_json, parse_json             JSON from outside; one error class for all failures
"""

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hive_jax.errors import (
    ConfigError,
    DataError,
    HiveError,
    MissingInputError,
    OutputError,
)
from hive_jax.file_content import explain_content

# Python objects take about ten times the memory of the JSON text: 20 GB at this size.
MAX_JSON_BYTES = 2**31

# A scheme of two letters or more, which is no drive; pathlib drops the second slash.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int | float: "a number",
    object: "any value",
}


def require_local(path: str | os.PathLike, name: str) -> None:
    """Raises ConfigError for a URL or an impossible path.

    A URL would otherwise be taken for a folder such as "./gs:", on a disk that goes
    with the machine.

    Args:
      path: a path, given by a user.
      name: name of the argument or config key, for the message.
    """
    text = os.fspath(path)
    if url := _URL.match(text):
        raise ConfigError(
            f"{name} is {text!r}; expected a local path, because {url[0]}/ cannot be "
            "opened: mount the bucket or download the files, and give that path"
        )
    if "\0" in text:
        raise ConfigError(f"{name} is {text!r}; expected a path")


def require_regular(
    path: str | os.PathLike, *, error: type[HiveError] = DataError
) -> None:
    """Raises unless a path is a regular file, or a link to one.

    Opening a pipe waits for its writer, for ever if there is none.

    Args:
      path: the file.
      error: class of the error for a folder, pipe, socket or device.

    Raises:
      ConfigError: a URL.
      MissingInputError: it does not exist.
    """
    require_local(path, "path")
    if not os.path.exists(path):
        raise MissingInputError(f"{path}: no such file")
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a pipe, socket or device"
        raise error(f"{path} is {kind}; expected a regular file")


@contextlib.contextmanager
def output_errors(path: str | os.PathLike) -> Iterator[None]:
    """Converts an OSError of the block to an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `path` if the block succeeds.

    Args:
      path: the file; its folder is created.
      overwrite: replace an existing file; else raise OutputError as for a failed write.
    """
    require_local(path, "path")
    path = Path(path)
    if not overwrite:
        require_absent(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        # Exclusive, so that no file or link that somebody put there is written to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(temporary, flags, 0o666))
        try:
            yield temporary
            # In this order a power failure leaves the old or the new file, never half.
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder to fill; it becomes `path` if the block succeeds.

    Raises OutputError if `path` exists or cannot be written.
    """
    require_local(path, "path")
    path = Path(path)
    require_absent(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error}; nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_absent(path: str | os.PathLike) -> None:
    """Raises OutputError if `path` exists."""
    if os.path.lexists(path):
        raise OutputError(f"{path} exists and is not overwritten: choose another name")


def require_writable(folder: str | os.PathLike) -> Path:
    """Creates a folder. Raises OutputError unless files can be written in it."""
    require_local(folder, "folder")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"hive_jax")
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}. Choose another folder, or "
            "free space and check the permissions."
        ) from error
    return Path(folder)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically, in UTF-8. Raises OutputError.

    Args:
      path: the file; its folder is created.
      text: its content.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: str | os.PathLike, value: Mapping | list) -> None:
    """Writes a JSON file atomically, indented. Raises OutputError.

    Args:
      path: the file; its folder is created.
      value: JSON value.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def json_lines(records: Iterable) -> str:
    """Returns records as JSON Lines, one a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def read_json(
    path: str | os.PathLike,
    kind: type | None = dict,
    *,
    error: type[HiveError] = DataError,
):
    """Returns the value of a JSON file in UTF-8, with or without a byte order mark.

    Args:
      path: the file.
      kind: expected type of the value, dict or list; None for any.
      error: class of the error for a file that cannot be used.

    Raises:
      MissingInputError: the file does not exist.
      HiveError: of class `error`; the file is unreadable, too large, of another
        encoding, not JSON, nested too deeply, or of another type.
    """
    return parse_json(read_text(path, error=error), str(path), kind, error=error)


def read_text(path: str | os.PathLike, *, error: type[HiveError] = DataError) -> str:
    """Returns the text of a file in UTF-8; raises as `read_json`.

    Args:
      path: the file.
      error: class of the error for a file that cannot be used.
    """
    require_regular(path, error=error)
    try:
        if (size := os.path.getsize(path)) > MAX_JSON_BYTES:
            raise error(f"{path}: {size:,} bytes; expected at most {MAX_JSON_BYTES:,}")
        return decode_text(Path(path).read_bytes(), str(path), error=error)
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from None


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


def _temporary(path: Path) -> Path:
    """Returns an unpredictable path beside `path`, and removes leftovers of killed
    processes there."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-3]
        if process.isdigit() and not _is_running(int(process)):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    name = f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp"
    return path.parent / name


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _flush(path: Path) -> None:
    """Writes a file or folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
