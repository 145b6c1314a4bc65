"""A lock in a bucket: a lease that its holder renews, and others take over.

The lock is a folder of numbered objects, `run.lock/00000007`; the highest is in force.
A process takes the lock by creating the next number, which the service grants to one
process alone (if-generation-match=0, If-None-Match). It writes its object again every
HEARTBEAT_SECONDS. The lease has run out if the object has not changed for
STALE_SECONDS of the clock of the process that wants it: clocks of hosts are not
compared.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from hive_jax.buckets import as_path, bucket_errors, create_object, list_names
from hive_jax.errors import HiveError, OutputError
from hive_jax.io import output_errors
from hive_jax.json_text import parse_json

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def bucket_lock(url: str | os.PathLike) -> Iterator[None]:
    """Holds a lock until the block ends or the process dies.

    A process that loses its lease, e.g. because it was suspended, is ended with
    OutputError's exit code: another one writes the same objects by then.

    Args:
      url: folder of the lock's objects.

    Raises:
      OutputError: another process holds the lock, or it cannot be written.
    """
    folder = as_path(url)
    with output_errors(folder):
        number, holder = _acquire(folder)
    released = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(folder, number, holder, released), name="lock", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()  # it would write the object again
        with contextlib.suppress(OSError), bucket_errors():
            _path(folder, number).unlink(missing_ok=True)


def _acquire(folder) -> tuple[int, dict]:
    """Returns the number of this process's object, and its content."""
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        # A pid is only meaningful within its namespace, e.g. a container.
        "namespace": os.stat("/proc/self/ns/pid").st_ino,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "key": secrets.token_hex(8),
        "renewed": 0,
    }
    while True:
        number = _highest(folder)
        previous = number and _read(folder, number)
        if previous:
            _require_lapsed(folder, number, previous)
        path, content = _path(folder, number + 1), json.dumps(holder).encode()
        if create_object(path, content):
            break  # else another process was faster: see whether it is alive
    if create_object(path, content):
        raise OutputError(
            f"{folder}: the service creates an object that exists already, so nothing "
            "keeps two runs apart; expected one with conditional writes (If-None-Match)"
        )
    if previous:
        _log.warning(
            "taking over %s: process %s on %s is gone",
            folder,
            previous["pid"],
            previous["host"],
        )
    with bucket_errors():
        for name in list_names(folder):
            if name < f"{number + 1:08}":
                (folder / name).unlink(missing_ok=True)
    return number + 1, holder


def _require_lapsed(folder, number: int, previous: dict) -> None:
    """Returns once the lease has run out. Raises OutputError if it is renewed."""
    if _is_dead_here(previous):
        return
    name = f"process {previous['pid']} on {previous['host']}"
    since = f"since {previous['since']}"
    _log.warning(
        "%s: %s holds the lock %s; waiting for up to %d s for a sign of it",
        folder,
        name,
        since,
        STALE_SECONDS,
    )
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        if _highest(folder) > number or _read(folder, number) not in (None, previous):
            raise OutputError(
                f"{folder}: {name} is running here {since}. Stop it, or choose another "
                "folder."
            )
        if _highest(folder) < number:  # released
            return


def _is_dead_here(holder: dict) -> bool:
    """Returns whether the holder was a process of this host, and has ended."""
    here = (socket.gethostname(), os.stat("/proc/self/ns/pid").st_ino)
    if (holder["host"], holder["namespace"]) != here:
        return False
    return not os.path.exists(f"/proc/{holder['pid']}")


def _renew(folder, number: int, holder: dict, released: threading.Event) -> None:
    """Renews the lease until it is released; ends the process if it is lost."""
    while not released.wait(HEARTBEAT_SECONDS):
        holder = holder | {"renewed": holder["renewed"] + 1}
        # The next heartbeat may succeed.
        with contextlib.suppress(OSError), bucket_errors():
            if _highest(folder) > number:
                _log.error("%s: another process has taken over; this one ends", folder)
                os._exit(OutputError.exit_code)
            _path(folder, number).write_bytes(json.dumps(holder).encode())


def _path(folder, number: int):
    return folder / f"{number:08}"


def _highest(folder) -> int:
    """Returns the number of the object in force; 0 if there is none."""
    names = filter(str.isdecimal, list_names(folder))
    return max(map(int, names), default=0)


def _read(folder, number: int) -> dict | None:
    """Returns the holder of an object; None if it is gone or was not written by us."""
    try:
        text = _read_text(_path(folder, number))
        holder = parse_json(text, "the lock", dict)
    except (FileNotFoundError, HiveError):
        return None
    keys = {"host", "pid", "namespace", "since"}
    return holder if keys <= holder.keys() else None


def _read_text(path) -> str:
    """Reads an object that its holder may renew meanwhile."""
    attempts = 3
    while True:
        attempts -= 1
        try:
            with bucket_errors():
                return path.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            # That of s3fs for an object that was written between two of its requests.
            if error.errno != errno.EBUSY or not attempts:
                raise
