"""Where the members of WebDataset tars are, so that any one is read without the others.

A sample is the members of a tar whose names are equal up to the first dot: 0001.jpg and
0001.txt. Reading all headers of a tar is slow, so it is done once: the index is kept in
~/.cache/hive_jax/tar_index (under XDG_CACHE_HOME if set), by path, size and time.
"""

import contextlib
import glob
import hashlib
import os
import re
import tarfile
from pathlib import Path

import msgpack

from hive_jax.data.sources.file_names import canonical, is_leftover
from hive_jax.errors import DataError, MissingInputError, OutputError
from hive_jax.io import atomic_write

# Extension -> (offset, size) of each member of a sample, and its name without it.
Entry = tuple[str, dict[str, tuple[int, int]]]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_GZIP = (b"\x1f\x8b", b"BZh", b"\xfd7z", b"\x28\xb5\x2f\xfd")


def expand_shards(pattern: str) -> list[str]:
    """Returns the paths of "DIR/{000..099}.tar", "DIR/*.tar", a folder or a file.

    Args:
      pattern: as WebDataset has it; a range keeps its leading zeros.

    Raises:
      MissingInputError: there is none, or some of a range are missing.
    """
    if os.path.isdir(pattern):
        _require_tars(pattern)
        pattern = f"{glob.escape(pattern)}/*.tar"
    paths = _expand_ranges(pattern)
    # A file of this very name goes first: names may have "*" and "[".
    if len(paths) == 1 and not os.path.exists(paths[0]):
        paths = sorted(glob.glob(paths[0], recursive=True))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        count = f"; {len(missing)} of {len(paths)} are missing" * (len(paths) > 1)
        raise MissingInputError(
            f"data.source: {missing[0] if missing else pattern}: no such file{count}. "
            f"Expected tars on this machine: mount or copy those of a bucket"
        )
    return paths


def _require_tars(folder: str) -> None:
    """Raises MissingInputError for a folder without a plain tar."""
    names = sorted(os.listdir(folder))
    if any(name.endswith(".tar") for name in names):
        return
    found = f"; it has {names[0]}" if names else ""
    raise MissingInputError(
        f"data.source: {folder}: no .tar in this folder{found}. Compressed tars cannot be "
        f"read at random: unpack them with gunzip"
    )


def _expand_ranges(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    before, after = pattern[: match.start()], pattern[match.end() :]
    width = len(first) if first.startswith("0") else 0
    numbers = range(int(first), int(last) + 1)
    heads = [f"{before}{number:0{width}d}" for number in numbers]
    return [head + tail for head in heads for tail in _expand_ranges(after)]


def read_index(path: str) -> list[Entry]:
    """Returns the samples of a tar, in its order, from the cache if it is there.

    Raises:
      DataError: it is not a plain tar, is damaged, or has a name twice.
    """
    # A tar that is written again has another time or size, and with it another index.
    about = os.stat(path)
    key = repr((os.path.realpath(path), about.st_size, about.st_mtime_ns))
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    cache = Path(caches, "hive_jax", "tar_index", name)
    # A missing or damaged index is made again. Names in a tar need not be UTF-8.
    with contextlib.suppress(OSError, ValueError, msgpack.UnpackException):
        return msgpack.unpackb(cache.read_bytes(), unicode_errors="surrogateescape")
    entries = _index(path)
    with contextlib.suppress(OutputError), atomic_write(cache) as temporary:
        packed = msgpack.packb(entries, unicode_errors="surrogateescape")
        temporary.write_bytes(packed)
    return entries


def _index(path: str) -> list[Entry]:
    """Reads the headers of all members."""
    samples = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = canonical(member.name)
                # Links have no content of their own. Sparse members are not one piece.
                is_file = member.isreg() and not member.issparse()
                if not is_file or any(map(is_leftover, name.split("/"))):
                    continue
                folder, slash, file = name.rpartition("/")
                stem, dot, extension = file.partition(".")
                if not dot:
                    continue
                key, extension = folder + slash + stem, extension.lower()
                members = samples.setdefault(key, {})
                if extension in members:
                    raise DataError(f"{path} has {name} twice")
                members[extension] = (member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} is not a tar, or is damaged: {error}{_hint(path)}"
        ) from None
    _require_end(path, end)
    return list(samples.items())


def _require_end(path: str, end: int) -> None:
    """Raises DataError unless the tar ends here: tarfile stops at a damaged header as
    at the end."""
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0") or os.path.getsize(path) < end:
        raise DataError(
            f"{path} is damaged: no header of a member at byte {end:,} of "
            f"{os.path.getsize(path):,}; copy it again"
        )


def _hint(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(4).startswith(_GZIP):
            return "; it is compressed, and only plain tars can be read at random"
    return ""
