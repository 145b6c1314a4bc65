"""One run at a time in a workdir.

Two runs in one workdir would overwrite each other's checkpoints without an error.
The owner is written into `run.lock`; whether it is still alive decides, so a killed
run blocks nobody. The file is never removed (an empty file is a free lock): removing
it would let two processes lock two different files of the same name.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from typing import Self

from hive_jax.errors import OutputError

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60


def writable_directory(path: str) -> str:
    """Creates the directory `path`; OutputError if nothing can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"hive_jax")
    except OSError as error:
        raise OutputError(
            f"cannot write to {path}: {error.strerror}. "
            "Choose another workdir, or free space and check the permissions."
        ) from error
    return path


class WorkdirLock:
    """Holds `workdir/run.lock`; a context manager.

    In a run of several processes only process 0 takes the lock.

    Raises:
      OutputError: the workdir cannot be written, or a live run holds it.
    """

    def __init__(self, workdir: str):
        self._path = os.path.join(writable_directory(workdir), "run.lock")
        self._owner = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *unused_exception) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the lock, also from an owner that is no longer alive."""
        with self._exclusive() as file:
            owner, age = _read(file)
            if owner and _is_alive(owner, age):
                raise OutputError(
                    f"{self._path}: process {owner['pid']} on {owner['host']} is "
                    f"running here since {owner['since']} (last sign of life "
                    f"{age:.0f} s ago). Stop it, or choose another workdir."
                )
            if owner:
                logging.getLogger(__name__).warning(
                    "taking over %s: process %s on %s is gone",
                    self._path,
                    owner["pid"],
                    owner["host"],
                )
            self._owner = _this_process()
            _write(file, json.dumps(self._owner))
        self._stop.clear()
        threading.Thread(target=self._beat, name="run_lock", daemon=True).start()

    def release(self) -> None:
        """Frees the lock if this object still holds it."""
        self._stop.set()
        with contextlib.suppress(OSError), self._exclusive() as file:
            owner, _ = _read(file)
            if owner and owner == self._owner:
                _write(file, "")
        self._owner = None

    def _beat(self) -> None:
        # The time of the file, not its content, so that a kill cannot tear it.
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    @contextlib.contextmanager
    def _exclusive(self):
        """The open lock file, while no other process looks at it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+") as file:
            # Some cluster file systems have no flock. The owner written in the file
            # still protects against all but two runs started in the same instant.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield file
            finally:
                # Not only by closing: a child forked meanwhile has the file open too.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _read(file) -> tuple[dict | None, float]:
    """The owner, or None if the lock is free or torn, and its heartbeat's age [s]."""
    age = time.time() - os.fstat(file.fileno()).st_mtime
    try:
        owner = json.loads(file.read())
    except ValueError:
        return None, age
    known = isinstance(owner, dict) and owner.keys() == _this_process().keys()
    return (owner if known else None), age


def _write(file, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _this_process() -> dict:
    return {
        "host": socket.gethostname(),
        "namespace": _process_namespace(),
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _is_alive(owner: dict, age: float) -> bool:
    same_host = (owner["host"], owner["namespace"]) == (
        socket.gethostname(),
        _process_namespace(),
    )
    if same_host and owner["start"]:
        return _start_time(owner["pid"]) == owner["start"]
    return age < STALE_SECONDS


def _start_time(pid: int) -> str:
    """Start of a living process in clock ticks; "" if it is dead or unknown.

    Number and start time together name a process: numbers alone are used again.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name, in parentheses, may contain spaces; the state follows it.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _process_namespace() -> str:
    """Tells containers apart that share a host name but not their processes."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
