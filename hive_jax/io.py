"""Paths, atomic writes, and files of others with readable errors.

require_path, require_regular    local or in a bucket; a file, not a pipe or device
atomic_write, atomic_dir         a file or folder appears under its name when complete
read_json, write_json            JSON files; one error class for all failures of reading
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hive_jax import buckets
from hive_jax.buckets import as_path, bucket_errors, is_url
from hive_jax.errors import (
    ConfigError,
    DataError,
    HiveError,
    MissingInputError,
    OutputError,
)
from hive_jax.json_text import decode_text, parse_json
from hive_jax.temporary import flush, temporary_path

# Python objects take about ten times the memory of the JSON text: 20 GB at this size.
MAX_JSON_BYTES = 2**31

# A scheme of two letters or more, which is no drive; pathlib drops the second slash.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def require_path(path: str | os.PathLike, name: str) -> None:
    """Raises ConfigError for an impossible path, and for URLs but gs:// and s3://.

    Args:
      path: a path, given by a user.
      name: name of the argument or config key, for the message.
    """
    if not is_url(path):
        _require_no_url(path, name, "a local path, gs:// or s3://")


def require_local(path: str | os.PathLike, name: str) -> None:
    """Raises ConfigError for a URL, also of a bucket, or an impossible path.

    A URL would otherwise be taken for a folder such as "./gs:", on a disk that goes
    with the machine.

    Args:
      path: a path, given by a user.
      name: name of the argument or config key, for the message.
    """
    if is_url(path):
        raise ConfigError(
            f"{name} is {os.fspath(path)!r}; expected a local path: give a folder, and "
            "copy it from or to the bucket with `gcloud storage cp -r` or "
            "`aws s3 cp --recursive`"
        )
    _require_no_url(path, name, "a local path")


def _require_no_url(path: str | os.PathLike, name: str, expected: str) -> None:
    text = os.fspath(path)
    if url := _URL.match(text):
        raise ConfigError(
            f"{name} is {text!r}; expected {expected}, because {url[0]}/ cannot be "
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
      ConfigError: a URL, but of gs:// or s3://.
      MissingInputError: it does not exist.
    """
    require_path(path, "path")
    target = as_path(path)
    # os.path: False for a name that is too long, where pathlib raises.
    if not (target.exists() if is_url(path) else os.path.exists(path)):
        raise MissingInputError(f"{path}: no such file")
    if not target.is_file():
        kind = "a folder" if target.is_dir() else "a pipe, socket or device"
        raise error(f"{path} is {kind}; expected a regular file")


@contextlib.contextmanager
def output_errors(path: str | os.PathLike) -> Iterator[None]:
    """Converts an OSError of the block, and for a URL any error, to an OutputError
    that names `path`."""
    try:
        with bucket_errors() if is_url(path) else contextlib.nullcontext():
            yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `path` if the block succeeds.

    The temporary path is local, also for an object of a bucket.

    Args:
      path: the file; its folder is created.
      overwrite: replace an existing file; else raise OutputError as for a failed write.
    """
    require_path(path, "path")
    path = as_path(path)
    if not overwrite:
        require_absent(path)
    if is_url(path):
        with _uploaded(path) as temporary:
            yield temporary
        return
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        # Exclusive, so that no file or link that somebody put there is written to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(temporary, flags, 0o666))
        try:
            yield temporary
            # In this order a power failure leaves the old or the new file, never half.
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder to fill; it becomes `path` if the block succeeds.

    In a bucket its objects appear one by one, after the block.

    Raises OutputError if `path` exists or cannot be written.
    """
    require_path(path, "path")
    path = as_path(path)
    require_absent(path)
    if is_url(path):
        with _uploaded(path) as temporary:
            temporary.mkdir()
            yield temporary
        return
    temporary = temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            flush(file)
        flush(temporary)
        os.rename(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error}; nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _uploaded(path) -> Iterator[Path]:
    """Yields a local path that is uploaded if the block succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        with output_errors(temporary):
            yield temporary
        with output_errors(path):
            buckets.upload(temporary, path)


def path_exists(path: str | os.PathLike) -> bool:
    """Returns whether a path exists, a link to nothing included."""
    return as_path(path).exists() if is_url(path) else os.path.lexists(path)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path is a folder; of a URL, whether objects are below it."""
    # os.path: False for a name that is too long, where pathlib raises.
    return as_path(path).is_dir() if is_url(path) else os.path.isdir(path)


def list_names(folder: str | os.PathLike) -> list[str]:
    """Returns the sorted names in a folder; none if it does not exist. Raises OSError."""
    if is_url(folder):
        return buckets.list_names(folder)
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder with everything in it. Raises OutputError."""
    with output_errors(path):
        buckets.remove_folder(path) if is_url(path) else shutil.rmtree(path)


def move(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Renames a file or folder; of a bucket, object by object. Raises OutputError.

    Args:
      source: path.
      target: path beside it.
    """
    with output_errors(source):
        rename = buckets.move_folder if is_url(source) else os.rename
        rename(source, target)


def require_absent(path: str | os.PathLike) -> None:
    """Raises OutputError if `path` exists."""
    if path_exists(path):
        raise OutputError(f"{path} exists and is not overwritten: choose another name")


def require_writable(folder: str | os.PathLike):
    """Creates a folder and returns its path. Raises OutputError unless files can be
    written in it."""
    require_path(folder, "folder")
    if is_url(folder):
        path = as_path(folder)
        with output_errors(path):
            probe = path / f".{secrets.token_hex(8)}.tmp"
            probe.write_bytes(b"hive_jax")
            probe.unlink()
        return path
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
    content = read_bytes(path, max_bytes=MAX_JSON_BYTES, error=error)
    return decode_text(content, str(path), error=error)


def read_bytes(
    path: str | os.PathLike,
    *,
    max_bytes: int | None = None,
    error: type[HiveError] = DataError,
) -> bytes:
    """Reads a file, local or in a bucket.

    Args:
      path: local path or URL.
      max_bytes: limit of its size; None for no limit.
      error: class of the error for a file that is larger, cannot be read, or is a
        folder, pipe, socket or device.

    Raises:
      MissingInputError: the file does not exist.
    """
    require_regular(path, error=error)
    try:
        with bucket_errors():
            if max_bytes is not None and (size := _size(path)) > max_bytes:
                raise error(f"{path}: {size:,} bytes; expected at most {max_bytes:,}")
            return as_path(path).read_bytes()
    except OSError as failure:
        problem = failure.strerror or failure
        raise error(f"{path} cannot be read: {problem}") from None


def _size(path: str | os.PathLike) -> int:
    """Returns the number of bytes of a file."""
    return as_path(path).stat().length if is_url(path) else os.path.getsize(path)
