"""Local copies of files and folders in buckets, for readers of local files."""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hive_jax.buckets import bucket_errors, filesystem, is_url
from hive_jax.errors import DataError, MissingInputError
from hive_jax.temporary import temporary_path

# Bytes of a download that takes long enough to be announced.
_LARGE = 100_000_000
# Objects that are downloaded at the same time, and then appear in the cache.
_BATCH = 64
# What services say about the content of an object.
_VERSION = ("size", "ETag", "etag", "generation")

_log = logging.getLogger(__name__)


def local_copy(path: str | os.PathLike) -> Path:
    """Returns a local path with the content of a file or folder.

    A local path is returned as it is. Objects of a bucket are downloaded to
    $XDG_CACHE_HOME/hive_jax/buckets, and again only when they have changed there.

    Args:
      path: local path or URL.

    Raises:
      MissingInputError: there is no such object or folder.
      DataError: it cannot be read, or does not fit on the disk.
    """
    if not is_url(path):
        return Path(path)
    try:
        with bucket_errors():
            return _download(os.fspath(path).rstrip("/"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _download(url: str) -> Path:
    """Brings the copy of a URL up to date, and returns it."""
    client, prefix = filesystem(url), url.partition("://")[2]
    objects = client.find(url, detail=True)
    # Consoles of the services make empty objects for folders.
    objects = {name: about for name, about in objects.items() if name[-1] != "/"}
    if outside := next((name for name in objects if ".." in name.split("/")), None):
        raise DataError(f"{url}: an object is named {outside}; expected no ..")
    if not objects:
        raise MissingInputError(f"{url}: no such object or folder")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parent = Path(caches, "hive_jax", "buckets", _digest(url))
    # The name tells formats apart, and appears in messages.
    copy = parent / "copy" / prefix.rpartition("/")[2]
    files = {name: copy / name.removeprefix(prefix).lstrip("/") for name in objects}
    _remove_others(parent / "copy", {*files.values()})
    versions = {
        name: repr([about.get(key) for key in _VERSION])
        for name, about in objects.items()
    }
    marks = {name: parent / "versions" / _digest(name) for name in objects}
    changed = [
        name
        for name in objects
        if not (files[name].is_file() and _read(marks[name]) == versions[name])
    ]
    _require_space(parent, sum(objects[name]["size"] for name in changed), url)
    for start in range(0, len(changed), _BATCH):
        names = changed[start : start + _BATCH]
        with _temporary_folder(parent) as folder:
            targets = [folder / str(number) for number in range(len(names))]
            client.get(names, [*map(str, targets)])
            for name, target in zip(names, targets, strict=True):
                for path in (files[name], marks[name]):
                    path.parent.mkdir(parents=True, exist_ok=True)
                # In this order a kill leaves no file with the mark of another version.
                marks[name].unlink(missing_ok=True)
                os.replace(target, files[name])
                marks[name].write_text(versions[name], "utf-8")
    return copy


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a folder, also removed by the next call if this process is killed."""
    folder = temporary_path(parent / "download")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_others(folder: Path, files: set[Path]) -> None:
    """Removes files whose objects are gone."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path not in files:
            path.unlink()


def _require_space(folder: Path, num_bytes: int, url: str) -> None:
    """Raises DataError unless the disk of the cache has room for a download."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(
            f"{url} takes {num_bytes / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB "
            "free; expected room for all of it: set XDG_CACHE_HOME to a larger disk"
        )
    if num_bytes > _LARGE:
        _log.warning("downloading %.1f GB of %s to %s", num_bytes / 1e9, url, folder)


def _read(mark: Path) -> str:
    return mark.read_text("utf-8") if mark.is_file() else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
