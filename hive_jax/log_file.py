"""Log files, which grow a record at a time: safe from full disks, kills and damage."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from hive_jax.buckets import as_path, bucket_errors, is_url
from hive_jax.errors import OutputError
from hive_jax.io import atomic_write, output_errors
from hive_jax.json_text import parse_json

# Objects are written whole. Uploads take this share of the time of a run at most, and
# come after this many seconds at the earliest and the latest, e.g. after an outage.
_MAX_UPLOAD_SHARE, _MIN_PAUSE, _MAX_PAUSE = 0.01, 10, 300
# Seconds that `flush_logs` waits for uploads: requests are repeated for up to a minute
# while a bucket is out of reach, and a job of several processes waits for none so long.
_FLUSH_SECONDS = 5


class LogFile:
    """A file that records are appended to.

    An object of a bucket is written whole, with everything that came since: after some
    time, by `flush_logs`, and at the end of `logs_flushed`.

    Args:
      path: local path or URL; it and its folder are created.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._object = _open_object(str(path)) if is_url(path) else None

    def append(self, record: bytes, *, durable: bool = False) -> None:
        """Appends a complete record.

        Args:
          record: its bytes.
          durable: write a local file through to the disk.

        Raises:
          OutputError: it cannot be written, e.g. because the disk is full.
        """
        if self._object:
            self._object.append(record)
        else:
            append_bytes(self.path, record, durable=durable)

    def replace(self, content: bytes) -> None:
        """Replaces all records. Raises OutputError."""
        if self._object:
            self._object.replace(content)
        else:
            with atomic_write(self.path) as temporary:
                temporary.write_bytes(content)


class _LogObject:
    """An object of a bucket, with its content in memory."""

    def __init__(self, url: str):
        self._path = as_path(url)
        self._content, self._changed, self._next = bytearray(), False, 0.0
        # Held for moments by who appends; and by who uploads.
        self._lock, self._uploading = threading.Lock(), threading.Lock()
        with output_errors(url), contextlib.suppress(FileNotFoundError):
            self._content += self._path.read_bytes()

    def append(self, record: bytes) -> None:
        with self._lock:
            self._content += record
            self._changed = True
        if time.monotonic() >= self._next:
            self._next = float("inf")  # until this upload ends
            self.start_upload()

    def replace(self, content: bytes) -> None:
        with self._lock:
            self._content, self._changed = bytearray(content), True
        self._upload()

    def start_upload(self) -> Future:
        """Uploads in another thread what is not in the bucket yet; logs a failure."""

        def upload() -> None:
            try:
                self._upload()
            except OutputError as error:
                logging.getLogger(__name__).warning("%s", error)

        return _uploads.submit(upload)

    def _upload(self) -> None:
        with self._uploading:
            began = time.monotonic()
            try:
                self._write_changes()
            finally:
                seconds = time.monotonic() - began
                pause = max(_MIN_PAUSE, seconds / _MAX_UPLOAD_SHARE)
                self._next = time.monotonic() + min(pause, _MAX_PAUSE)

    def _write_changes(self) -> None:
        with self._lock:
            if not self._changed:
                return
            content, self._changed = bytes(self._content), False
        try:
            with output_errors(self._path):
                self._path.write_bytes(content)
        except OutputError:
            self._changed = True
            raise


# Shared by all `LogFile`s of a URL, as they would share a file.
_objects: dict[str, _LogObject] = {}
_uploads = ThreadPoolExecutor(1, "logs")


def _open_object(url: str) -> _LogObject:
    if (opened := _objects.get(url)) is None:
        opened = _objects[url] = _LogObject(url)
    return opened


def flush_logs(seconds: float | None = _FLUSH_SECONDS) -> None:
    """Uploads all records that are not in their buckets yet; failures are logged.

    Args:
      seconds: limit of the wait, after which uploads continue in their thread; None to
        wait for all of them.
    """
    wait([log.start_upload() for log in _objects.values()], seconds)


@contextlib.contextmanager
def logs_flushed() -> Iterator[None]:
    """Context manager for the time that log files are written: uploads all records at
    its end, however it comes."""
    try:
        yield
    finally:
        flush_logs(None)
        _objects.clear()


def append_bytes(
    path: str | os.PathLike, content: bytes, *, durable: bool = False
) -> None:
    """Appends all of `content` to a local file, or nothing: no reader meets half a
    record.

    The file is opened and closed here, so that a failed write leaves no buffer behind
    that would fail again.

    Args:
      path: the file; it and its folder are created.
      content: a complete record.
      durable: write it through to the disk.

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
                if durable:
                    os.fsync(file.fileno())
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
        with bucket_errors():
            *lines, _ = as_path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        problem = error.strerror or error
        raise OutputError(f"cannot read {path}: {problem}") from error
    records = []
    for line in lines:
        # Not UTF-8, or DataError, which is a ValueError too.
        with contextlib.suppress(ValueError):
            record = parse_json(line.decode(), str(path), dict)
            if is_valid(record):
                records.append(record)
    return records, len(lines) - len(records)
