"""Paths in buckets (gs://, s3://) beside local ones, through etils.epath and fsspec.

as_path               a local pathlib.Path, or an epath.Path with the same methods
bucket_errors         any failure of a client library as an OSError
upload, move_folder   whole files and folders; downloads.py has the way back

Only objects exist in a bucket: a folder is there while an object has its prefix, and
nothing is renamed or appended to in one step. An object appears when it is complete.
"""

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from hive_jax.errors import (
    ConfigError,
    HiveError,
    UnavailableError,
    UnreachableError,
)

# Scheme -> package of its fsspec driver, and the extra that installs it.
_DRIVERS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def is_url(path: str | os.PathLike) -> bool:
    """Returns whether a path is in a bucket: gs:// or s3://."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in _DRIVERS))


def as_path(path: str | os.PathLike):
    """Returns the `pathlib.Path` of a local path, or the `epath.Path` of a URL.

    Args:
      path: local path or URL.

    Raises:
      ConfigError: the URL has no bucket or is a pattern, or the bucket does not exist
        or cannot be opened with the credentials of this machine.
      UnavailableError: the driver is not installed.
      UnreachableError: the service does not answer.
    """
    if not is_url(path):
        return Path(path)
    scheme, _, rest = os.fspath(path).partition("://")
    # fsspec would expand it, and remove what it matches.
    if any(character in rest for character in "*?["):
        raise ConfigError(
            f"{path} is a pattern to the clients of buckets; expected a name without "
            "*, ? and ["
        )
    _require_bucket(scheme, rest.partition("/")[0])
    from etils import epath  # slow

    return epath.Path(path)


@contextlib.contextmanager
def bucket_errors() -> Iterator[None]:
    """Converts any error of the block to an OSError.

    The clients raise errors of several libraries (HTTP, credentials, botocore), which
    have no common class.
    """
    try:
        yield
    except (OSError, HiveError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def filesystem(path: str | os.PathLike):
    """Returns the fsspec file system of a URL."""
    as_path(path)
    import fsspec

    return fsspec.filesystem(os.fspath(path).partition("://")[0])


def list_names(path: str | os.PathLike) -> list[str]:
    """Returns the names of the objects and folders directly below a URL.

    Unlike `iterdir` and `glob`, it is one request, and so right while other processes
    write; a URL that nothing is below has no names.

    Raises:
      OSError: it cannot be listed.
    """
    url = os.fspath(path).rstrip("/")
    try:
        with bucket_errors():
            paths = filesystem(url).ls(url, detail=False)
    except FileNotFoundError:
        return []
    names = {found.rstrip("/").rpartition("/")[2] for found in paths}
    # An object of the same name is listed as itself.
    return sorted(names - {url.rpartition("/")[2]})


def create_object(path: str | os.PathLike, content: bytes) -> bool:
    """Creates an object unless it exists, atomically.

    The condition is the service's own: if-generation-match=0 or If-None-Match.

    Args:
      path: URL.
      content: of the object.

    Returns:
      False if it existed already.

    Raises:
      OSError: it cannot be written.
    """
    try:
        with bucket_errors():
            filesystem(path).pipe_file(os.fspath(path), content, mode="create")
    except FileExistsError:
        return False
    return True


def remove_folder(path: str | os.PathLike) -> None:
    """Removes all objects below a URL. Raises OSError."""
    with bucket_errors(), contextlib.suppress(FileNotFoundError):
        filesystem(path).rm(os.fspath(path), recursive=True)


def move_folder(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Moves the objects below a URL, one by one: all are copied, then removed.

    Args:
      source: URL of the folder.
      target: URL that it gets, of the same bucket.

    Raises:
      OSError: an object cannot be copied or removed.
    """
    client, source = filesystem(source), os.fspath(source)
    prefix = source.partition("://")[2]
    with bucket_errors():
        for path in client.find(source):
            client.cp_file(path, os.fspath(target) + path.removeprefix(prefix))
    remove_folder(source)


def upload(source: Path, target: str | os.PathLike) -> None:
    """Copies a local file or folder to a URL.

    Files of a folder come in the order of their names, but config.json last: readers
    take a folder without one for incomplete.

    Args:
      source: local file or folder.
      target: URL of the object, or of the folder.

    Raises:
      OSError: an object cannot be written.
    """
    client = filesystem(target)
    with bucket_errors():
        if source.is_file():
            client.put_file(str(source), os.fspath(target))
            return
        files = [path for path in source.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
            name = file.relative_to(source).as_posix()
            client.put_file(str(file), f"{os.fspath(target)}/{name}")


@functools.cache
def _require_bucket(scheme: str, bucket: str) -> None:
    """Raises unless the driver is installed and the bucket exists."""
    if not bucket:
        raise ConfigError(
            f"{scheme}:// names no bucket; expected {scheme}://BUCKET/NAME"
        )
    package, extra = _DRIVERS[scheme]
    # Read by epath when it first opens a URL: TensorFlow's file system, which it would
    # prefer where TensorFlow is installed, knows neither s3:// nor these endpoints.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec

    # Other hosts write too: no listing may come from a cache.
    for name in (scheme, "gcs"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    try:
        client = fsspec.filesystem(scheme)
    except ImportError as error:
        raise UnavailableError(
            f"{scheme}:// cannot be opened without the package {package}: "
            f"pip install 'hive_jax[{extra}]'"
        ) from error
    url = f"{scheme}://{bucket}"
    try:
        # Not `exists`, which is False after any failure of S3, and needs permissions
        # beyond those for objects.
        client.find(f"{bucket}/{secrets.token_hex(8)}")
    except FileNotFoundError:
        raise ConfigError(
            f"{url}: no such bucket; expected an existing one, and credentials for it "
            "on this machine"
        ) from None
    except Exception as error:
        # What aiohttp and botocore raise has no common class.
        names = " ".join(base.__name__ for base in type(error).__mro__)
        if "Connect" in names or "Timeout" in names:
            raise UnreachableError(
                f"{url} cannot be reached: {error}; run the same command again"
            ) from error
        raise ConfigError(f"{url} cannot be opened: {error}") from error
