"""Where the image files of a set are: a folder, or a zip. Bytes by name.

Names come from a set that somebody else has written. None reaches beyond the folder,
opens a device or a network, or makes more memory than an image may have.
"""

import os
import re
import stat
import zipfile
import zlib

from hive_jax.data.image_io import MAX_BYTES
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import is_utf8
from hive_jax.errors import DataError, MissingInputError

# Of the zip's methods, those that unpack no more than they are asked for.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NO_ZIP = (zipfile.BadZipFile, NotImplementedError, OSError, ValueError)
_DRIVE_OR_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def open_store(path: str, key: str):
    """The store at `path`, the value of config key `key`.

    Raises:
      MissingInputError: there is nothing.
      DataError: it is a file, and no zip.
    """
    if os.path.isdir(path):
        return FolderStore(path)
    if os.path.isfile(path):
        return ZipStore(path)
    raise MissingInputError(f"{key}={path}: no such folder or zip")


class FolderStore:
    """Regular files under a folder. Links may not lead out of it."""

    def __init__(self, path: str):
        self.path = path
        self._root = os.path.realpath(path)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises InvalidSample."""
        where = f"{self.path}/{name}"
        _safe(name, where)
        try:
            path = os.path.realpath(os.path.join(self._root, name))
            if os.path.commonpath((path, self._root)) != self._root:
                raise InvalidSample("unsafe path", where, f"leads out of {self.path}")
            # A pipe would be waited for, without O_NONBLOCK.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return _regular(descriptor, where)
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            raise InvalidSample(reason, where, str(error.strerror)) from None
        except UnicodeEncodeError as error:  # where names of files are not UTF-8
            raise InvalidSample("unreadable", where, str(error)) from None

    def has(self, name: str) -> bool:
        try:
            return os.path.isfile(os.path.join(self._root, _safe(name, name)))
        except InvalidSample:
            return False


class ZipStore:
    """Members of a zip by their full names; nothing is unpacked to the disk."""

    def __init__(self, path: str):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _NO_ZIP as error:
            raise DataError(
                f"{path}: {error}; expected a folder of images, or a zip of them"
            ) from None
        self._members = {m.filename: m for m in self._zip.infolist() if not m.is_dir()}

    def read(self, name: str) -> bytes:
        """The content of a member. Raises InvalidSample."""
        where = f"{self.path}/{name}"
        member = self._members.get(_safe(name, where))
        if member is None:
            raise InvalidSample("missing", where, "no such member")
        _require_size(member.file_size, where)
        if member.compress_type not in _BOUNDED:
            detail = f"packed by method {member.compress_type}; expected deflate"
            raise InvalidSample("unreadable", where, detail)
        try:
            with self._zip.open(member) as file:
                content = file.read(member.file_size + 1)
        except (*_NO_ZIP, zlib.error, RuntimeError, EOFError) as error:
            raise InvalidSample("damaged", where, str(error)) from None
        if len(content) != member.file_size:
            raise InvalidSample("damaged", where, "is not as long as the zip says")
        return content

    def has(self, name: str) -> bool:
        try:
            return _safe(name, name) in self._members
        except InvalidSample:
            return False


def _regular(descriptor: int, where: str) -> bytes:
    """The content of an open file that is one, and not too large."""
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise InvalidSample("unsafe path", where, "is not a regular file")
    _require_size(about.st_size, where)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_BYTES)


def _safe(name: str, where: str) -> str:
    """The name, if it is one of a file below the root in every system's eyes."""
    parts = name.split("/")
    if (
        not name
        or len(name) > 1024
        or "\0" in name
        or "\\" in name
        or name.startswith(("/", "~"))
        or ".." in parts
        or _DRIVE_OR_SCHEME.match(name)
        or not is_utf8(name)
    ):
        raise InvalidSample(
            "unsafe path", where, "expected a path below the folder of images"
        )
    return name


def _require_size(size: int, where: str) -> None:
    if size > MAX_BYTES:
        detail = f"{size:,} bytes; expected at most {MAX_BYTES:,}"
        raise InvalidSample("too large", where, detail)
