"""Image files by name, from a folder or a zip.

Paths are confined to the root; only regular files of up to 64 MB are read.
"""

import os
import re
import stat
import zipfile
import zlib
from typing import Protocol

from hive_jax.data.image_io import MAX_BYTES
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import is_utf8
from hive_jax.errors import DataError, MissingInputError
from hive_jax.io import require_local, require_regular

# The compression methods that unpack no more than they are asked for.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, OSError, ValueError)
_DRIVE_OR_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class ImageStore(Protocol):
    """Image files by name."""

    path: str

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file. Raises InvalidSample."""

    def has(self, name: str) -> bool:
        """Returns whether a file exists; its content is not checked."""


def open_store(path: str, key: str) -> ImageStore:
    """Opens a folder or a zip of images.

    Args:
      path: the folder or zip.
      key: the option that named it, for the error.

    Raises:
      ConfigError: it is a URL.
      MissingInputError: there is nothing.
      DataError: it is not a zip, but another file, a pipe or a device.
    """
    require_local(path, key)
    if os.path.isdir(path):
        return FolderStore(path)
    if not os.path.exists(path):
        raise MissingInputError(f"{key}={path}: no such folder or zip")
    require_regular(path)
    return ZipStore(path)


class FolderStore:
    """Regular files under a folder; symbolic links may not lead out of it."""

    def __init__(self, path: str):
        self.path = path
        self._root = os.path.realpath(path)

    def read(self, name: str) -> bytes:
        where = f"{self.path}/{name}"
        _require_safe(name, where)
        try:
            path = self._locate(name)
            if path is None:
                raise InvalidSample("unsafe path", where, f"leads out of {self.path}")
            # Without O_NONBLOCK, opening a pipe waits for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return _read_regular(descriptor, where)
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            raise InvalidSample(reason, where, str(error.strerror)) from None
        except UnicodeEncodeError as error:  # where names of files are not UTF-8
            raise InvalidSample("unreadable", where, str(error)) from None

    def has(self, name: str) -> bool:
        path = self._locate(name) if _is_safe(name) else None
        return path is not None and os.path.isfile(path)

    def _locate(self, name: str) -> str | None:
        """Returns the real path of a file; None if a link leads out of the root."""
        path = os.path.realpath(os.path.join(self._root, name))
        inside = os.path.commonpath((path, self._root)) == self._root
        return path if inside else None


class ZipStore:
    """Members of a zip by their full names; nothing is unpacked to the disk."""

    def __init__(self, path: str):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise DataError(
                f"{path}: {error}; expected a folder of images, or a zip of them"
            ) from None
        self._members = {m.filename: m for m in self._zip.infolist() if not m.is_dir()}

    def read(self, name: str) -> bytes:
        where = f"{self.path}/{name}"
        _require_safe(name, where)
        member = self._members.get(name)
        if member is None:
            raise InvalidSample("missing", where, "no such member")
        _require_size(member.file_size, where)
        if member.compress_type not in _BOUNDED:
            detail = f"packed by method {member.compress_type}; expected deflate"
            raise InvalidSample("unreadable", where, detail)
        try:
            with self._zip.open(member) as file:
                content = file.read(member.file_size + 1)
        except (*_ZIP_ERRORS, zlib.error, RuntimeError, EOFError) as error:
            raise InvalidSample("damaged", where, str(error)) from None
        if len(content) != member.file_size:
            raise InvalidSample("damaged", where, "is not as long as the zip says")
        return content

    def has(self, name: str) -> bool:
        return _is_safe(name) and name in self._members


def _read_regular(descriptor: int, where: str) -> bytes:
    """Reads an open file, which must be a regular one of bounded size."""
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise InvalidSample("unsafe path", where, "is not a regular file")
    _require_size(about.st_size, where)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_BYTES)


def _is_safe(name: str) -> bool:
    """Returns whether the name stays below the root on every system."""
    return not (
        not name
        or len(name) > 1024
        or "\0" in name
        or "\\" in name
        or name.startswith(("/", "~"))
        or ".." in name.split("/")
        or _DRIVE_OR_SCHEME.match(name)
        or not is_utf8(name)
    )


def _require_safe(name: str, where: str) -> None:
    if not _is_safe(name):
        raise InvalidSample(
            "unsafe path", where, "expected a path below the folder of images"
        )


def _require_size(size: int, where: str) -> None:
    if size > MAX_BYTES:
        detail = f"{size:,} bytes; expected at most {MAX_BYTES:,}"
        raise InvalidSample("too large", where, detail)
