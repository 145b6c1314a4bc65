"""Image files by name, from a folder or a zip.

Paths are confined to the root; only regular files of up to 64 MB are read. A name that
does not exist may be there in another spelling: composed or decomposed characters,
"./", or UTF-8 in a zip that does not say so.
"""

import contextlib
import functools
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from hive_jax.data.image_io import MAX_BYTES, require_size
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.file_names import (
    NameIndex,
    canonical,
    explain_unsafe,
    is_leftover,
    is_safe,
    require_safe,
)
from hive_jax.data.sources.zip_store import ZipStore
from hive_jax.errors import MissingInputError
from hive_jax.io import require_local, require_regular

# Of a folder, listed to find the name nearest to a missing one.
_MAX_LISTED = 100_000
# Images looked up before anything else, so that a wrong folder fails at once.
_CHECKED_IMAGES = 1000


class ImageStore(Protocol):
    """Image files by name."""

    path: str

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file. Raises InvalidSample."""

    def has(self, name: str) -> bool:
        """Returns whether a file exists; its content is not checked."""

    def explain_missing(self, name: str) -> str:
        """Returns why `has` is False, with the nearest existing name."""

    def image_name(self, name: str) -> str:
        """Returns a name that the image has in all sources of the same images."""


def open_store(path: str, key: str) -> ImageStore:
    """Opens a folder of images, a zip of them, or a folder in a zip, "a.zip/images".

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
    archive, suffix, folder = path.rpartition(".zip/")
    if suffix and os.path.isfile(f"{archive}.zip"):
        return ZipStore(f"{archive}.zip", folder.strip("/"))
    if not os.path.exists(path):
        raise MissingInputError(f"{key}={path}: no such folder or zip")
    require_regular(path)
    return ZipStore(path)


def require_images(
    names: Sequence[str], store: ImageStore, max_bad_fraction: float
) -> None:
    """Looks up some of the images, so that a wrong folder fails before it is read.

    Args:
      names: of the images.
      store: that should have them.
      max_bad_fraction: share of them that may be missing.

    Raises:
      MissingInputError: more are missing; the message has the name nearest to the first.
    """
    # From all of the dataset: one folder of a sorted dataset may be missing.
    chosen = names[:: max(1, len(names) // _CHECKED_IMAGES)]
    missing = [name for name in chosen if not store.has(name)]
    if len(missing) > max_bad_fraction * len(chosen):
        raise MissingInputError(
            f"{len(missing)} of {len(chosen)} images are not in {store.path}; the first: "
            f"{missing[0]}: {store.explain_missing(missing[0])}. Check images= of "
            f"data.source"
        )


class FolderStore:
    """Regular files under a folder; symbolic links may not lead out of it."""

    def __init__(self, path: str):
        self.path = path
        self._root = os.path.realpath(path)
        self._spellings = functools.lru_cache(maxsize=1000)(_list_spellings)

    def read(self, name: str) -> bytes:
        where = f"{self.path}/{name}"
        with self._open(name, where) as file:
            # Of the open file: another may have its name by now.
            require_size(os.fstat(file.fileno()).st_size, where)
            return file.read(MAX_BYTES)

    def read_header(self, name: str, size: int) -> bytes:
        """Returns the first bytes of a file. Raises InvalidSample.

        Args:
          name: of the file.
          size: number of bytes.
        """
        with self._open(name, f"{self.path}/{name}") as file:
            return file.read(size)

    def has(self, name: str) -> bool:
        path = self._real_path(name) if is_safe(name) else ""
        return self._contains(path) and os.path.isfile(path)

    def explain_missing(self, name: str) -> str:
        if not is_safe(name):
            return explain_unsafe(name)
        if not self._contains(self._real_path(name)):
            return explain_link(self.path)
        if os.path.islink(os.path.join(self._root, name)):
            return "is a symbolic link to a file that does not exist"
        return self._index.explain_missing(name, self.path)

    def image_name(self, name: str) -> str:
        return f"{os.path.abspath(self.path)}/{canonical(name)}"

    @contextlib.contextmanager
    def _open(self, name: str, where: str) -> Iterator[BinaryIO]:
        require_safe(name, where)
        try:
            path = self._real_path(name)
            if not self._contains(path):
                raise InvalidSample("unsafe path", where, explain_link(self.path))
            # Without O_NONBLOCK, opening a pipe waits for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise InvalidSample("unsafe path", where, "is not a regular file")
                yield file
        except FileNotFoundError:
            raise InvalidSample("missing", where, self.explain_missing(name)) from None
        except OSError as error:
            raise InvalidSample("unreadable", where, str(error.strerror)) from None
        except UnicodeEncodeError as error:  # where names of files are not UTF-8
            raise InvalidSample("unreadable", where, str(error)) from None

    def _contains(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self._root.rstrip('/')}/")

    def _real_path(self, name: str) -> str:
        """The path without links, of a name in the spelling that the disk has."""
        path = os.path.join(self._root, name)
        # Only characters beyond ASCII have several spellings.
        if name.isascii() or os.path.lexists(path):
            return os.path.realpath(path)
        path = self._root
        for component in canonical(name).split("/"):
            spelling = self._spellings(path).get(component, component)
            path = os.path.join(path, spelling)
        return os.path.realpath(path)

    @functools.cached_property
    def _index(self) -> NameIndex:
        return NameIndex(itertools.islice(self._walk(), _MAX_LISTED))

    def _walk(self) -> Iterator[str]:
        for folder, below, files in os.walk(self._root):
            below[:] = sorted(name for name in below if not is_leftover(name))
            for file in sorted(files):
                yield os.path.relpath(os.path.join(folder, file), self._root)


def _list_spellings(folder: str) -> dict[str, str]:
    """Canonical name -> name of each entry of a folder; empty if it cannot be read."""
    try:
        return {canonical(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def explain_link(folder: str) -> str:
    """Returns what to do about a symbolic link that leads out of a folder."""
    return (
        f"a symbolic link leads out of {folder}: copy it with its files, "
        f"cp -rL {folder} COPY, or name the folder that the links lead to"
    )
