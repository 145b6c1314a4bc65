"""Image files in a zip, by name; nothing is unpacked to the disk."""

import collections
import functools
import os
import zipfile
import zlib

from hive_jax.data.image_io import require_size
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.file_names import (
    NameIndex,
    canonical,
    explain_unsafe,
    is_safe,
    require_safe,
)
from hive_jax.errors import DataError, MissingInputError

# The compression methods that unpack no more than they are asked for.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ERRORS = (zipfile.BadZipFile, NotImplementedError, OSError, ValueError)
_UTF8_FLAG = 0x800  # of a member


class ZipStore:
    """Members of a zip by their full names.

    Args:
      path: the zip.
      folder: in the zip; names are relative to it.

    Raises:
      DataError: it is not a zip.
      MissingInputError: it has no such folder.
    """

    def __init__(self, path: str, folder: str = ""):
        self.path = f"{path}/{folder}" if folder else path
        # Reads the central directory at the end alone. Threads may share the file: each
        # open member has a position of its own.
        try:
            self._zip = zipfile.ZipFile(path)
        except _ERRORS as error:
            raise DataError(
                f"{path}: {error}; expected a folder of images, or a zip of them"
            ) from None
        prefix = f"{folder}/" if folder else ""
        self._members = {
            name.removeprefix(prefix): member
            for member in self._zip.infolist()
            if (name := _decode_name(member)).startswith(prefix) and not member.is_dir()
        }
        if folder and not self._members:
            raise MissingInputError(f"{path} has no folder {folder}")

    def read(self, name: str) -> bytes:
        where = f"{self.path}/{name}"
        require_safe(name, where)
        member = self._find(name)
        if member is None:
            raise InvalidSample("missing", where, self.explain_missing(name))
        require_size(member.file_size, where)
        if member.compress_type not in _BOUNDED:
            detail = f"compressed by method {member.compress_type}; expected deflate"
            raise InvalidSample("unreadable", where, detail)
        try:
            with self._zip.open(member) as file:
                # No more than the directory says, whatever the member unpacks to; one
                # byte more shows that it lies.
                content = file.read(member.file_size + 1)
        except (*_ERRORS, zlib.error, RuntimeError, EOFError) as error:
            raise InvalidSample("damaged", where, str(error)) from None
        if len(content) != member.file_size:
            raise InvalidSample("damaged", where, "is not as long as the zip says")
        return content

    def has(self, name: str) -> bool:
        return is_safe(name) and self._find(name) is not None

    def explain_missing(self, name: str) -> str:
        if not is_safe(name):
            return explain_unsafe(name)
        return self._index.explain_missing(name, self.path)

    def image_name(self, name: str) -> str:
        return f"{os.path.abspath(self.path)}/{canonical(name)}"

    def _find(self, name: str) -> zipfile.ZipInfo | None:
        # The exact name first: two members may differ in their spelling alone.
        return self._members.get(name) or self._by_canonical.get(canonical(name))

    @functools.cached_property
    def _by_canonical(self) -> dict[str, zipfile.ZipInfo]:
        """Members by canonical name; without names that several have."""
        names = collections.Counter(map(canonical, self._members))
        return {
            canonical(name): member
            for name, member in self._members.items()
            if is_safe(canonical(name)) and names[canonical(name)] == 1
        }

    @functools.cached_property
    def _index(self) -> NameIndex:
        return NameIndex(self._members)


def _decode_name(member: zipfile.ZipInfo) -> str:
    """The name of a member; UTF-8 also where the zip does not say so.

    Without the flag a name is in code page 437 by the specification, in UTF-8 by habit
    of many programs.
    """
    if member.flag_bits & _UTF8_FLAG or member.filename.isascii():
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename
