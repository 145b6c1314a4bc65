"""A lock on a folder that no killed process leaves behind."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hive_jax.bucket_lock import bucket_lock
from hive_jax.buckets import is_url
from hive_jax.errors import HiveError, OutputError
from hive_jax.io import output_errors, require_writable
from hive_jax.json_text import parse_json

# Several missed heartbeats in a row, as network file systems may delay them.
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60


@contextlib.contextmanager
def exclusive_lock(folder: str | os.PathLike, lock_file: str = "") -> Iterator[None]:
    """Creates and locks a folder until the block ends or the process dies.

    The lock is flock's. Some cluster file systems have no flock, or one that covers a
    single host. There the lock file decides: it names its holder, whose heartbeat is
    the file's modification time, and a holder is considered dead after STALE_SECONDS
    without one. The file stays, empty when free: if it were removed, two processes
    could lock two files of one name. In a bucket it is a lease; see `bucket_lock`.

    Args:
      folder: the folder or URL; created if needed.
      lock_file: name of the lock file in it; empty to lock the folder by flock alone.

    Raises:
      OutputError: another process holds the lock, or the folder cannot be written.
    """
    if is_url(folder):
        with bucket_lock(require_writable(folder) / (lock_file or "lock")):
            yield
        return
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
        text = os.pread(descriptor, 4096, 0).decode("utf-8", "replace")
        holder = parse_json(text, "the lock", dict)
    except HiveError:
        return None, age
    return (holder if {"host", "pid", "since"} <= holder.keys() else None), age


def _send_heartbeats(path: Path, released: threading.Event) -> None:
    """Touches the lock file until the lock is released."""
    while not released.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
