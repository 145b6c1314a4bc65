"""Atomic writes, JSON with readable errors, and a lock.

atomic_write, atomic_dir    a file or folder appears under its name when complete
read_json, parse_json       JSON from outside; one error class for all failures
exclusive_lock              one process at a time in a folder
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hive_jax.errors import DataError, HiveError, MissingInputError, OutputError
from hive_jax.file_content import explain_content

# Python objects take about ten times the memory of the JSON text: 20 GB at this size.
MAX_JSON_BYTES = 2**31
# Several missed heartbeats in a row, as network file systems may delay them.
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60

_JSON_TYPES = {dict: "an object", list: "a list"}


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
    path = Path(path)
    if not overwrite:
        require_absent(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
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
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise error(f"{path}: {size:,} bytes; expected at most {MAX_JSON_BYTES:,}")
        return decode_text(path.read_bytes(), str(path), error=error)
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


@contextlib.contextmanager
def exclusive_lock(folder: str | os.PathLike, lock_file: str = "") -> Iterator[None]:
    """Creates and locks a folder until the block ends or the process dies.

    The lock is flock's. Some cluster file systems have no flock, or one that covers a
    single host. There the lock file decides: it names its holder, whose heartbeat is
    the file's modification time, and a holder is considered dead after STALE_SECONDS
    without one. The file stays, empty when free: if it were removed, two processes
    could lock two files of one name.

    Args:
      folder: the folder; created if needed.
      lock_file: name of the lock file in it; empty to lock the folder by flock alone.

    Raises:
      OutputError: another process holds the lock, or the folder cannot be written.
    """
    path = Path(require_writable(folder), lock_file)
    with output_errors(path):
        flags = os.O_RDWR | os.O_CREAT if lock_file else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    released = threading.Event()
    try:
        holder = _acquire(descriptor, path, names_holder=bool(lock_file))
        if lock_file:
            threading.Thread(
                target=_send_heartbeats, args=(path, released), name="lock", daemon=True
            ).start()
        try:
            yield
        finally:
            released.set()
            with contextlib.suppress(OSError):
                # Unless another process took over, e.g. while this one was suspended.
                if lock_file and _read_holder(descriptor)[0] == holder:
                    os.ftruncate(descriptor, 0)
                # Closing does not unlock while a forked child has the file open too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, *, names_holder: bool) -> dict:
    """Takes the lock; returns its new holder. Raises OutputError if it is held."""
    has_flock = is_locked = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_locked = False
    except OSError:
        has_flock = False
    previous, age = _read_holder(descriptor) if names_holder else (None, 0.0)
    if previous and is_locked:
        # flock is reliable within a host, so a holder on this one is dead.
        same_host = previous["host"] == socket.gethostname()
        is_locked = age > STALE_SECONDS or (has_flock and same_host)
    if not is_locked:
        raise OutputError(
            f"{path}: {_describe_holder(previous, age)}. Stop it, or choose another folder."
        )
    if previous:
        logging.getLogger(__name__).warning(
            "taking over %s: process %s on %s is gone",
            path,
            previous["pid"],
            previous["host"],
        )
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    if names_holder:
        with output_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return holder


def _describe_holder(holder: dict | None, age: float) -> str:
    if holder is None:
        return "another process is writing it"
    process = f"process {holder['pid']} on {holder['host']}"
    since = f"{holder['since']} (last heartbeat {age:.0f} s ago)"
    return f"{process} is running here since {since}"


def _read_holder(descriptor: int) -> tuple[dict | None, float]:
    """Returns the holder in a lock file (None if empty) and its heartbeat's age."""
    age = time.time() - os.fstat(descriptor).st_mtime
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):
        return None, age
    is_holder = isinstance(holder, dict) and {"host", "pid", "since"} <= holder.keys()
    return (holder if is_holder else None), age


def _send_heartbeats(path: Path, released: threading.Event) -> None:
    """Touches the lock file until the lock is released."""
    while not released.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _temporary(path: Path) -> Path:
    """Returns a path beside `path`, and removes leftovers of killed processes there."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not _is_running(int(process)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


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
