"""Writes a set as the folder of ArrayRecord that prepared.py reads.

While it is written the folder has plan.json, what it will be, and `data-00000.json` and
so on beside each shard that is whole. The manifest takes the place of all of these.
"""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hive_jax.data.image_io import encode_png
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.array_record import (
    MANIFEST,
    array_record,
    check_shards,
    pack,
    pack_bad,
    read_manifest,
)
from hive_jax.errors import DataError, MissingInputError, OutputError
from hive_jax.io import (
    atomic_write,
    exclusive_lock,
    output_errors,
    read_json,
    write_json,
)

_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """What is to be prepared; a folder holds one and no other.

    Attributes:
      source: as in data.source.
      fingerprint: of the source.
      samples: of it.
      images: [size, preprocessing] that images are resized to, or None to keep files.
      shard_size: samples of a shard.
    """

    source: str
    fingerprint: str
    samples: int
    images: list | None
    shard_size: int

    def differences(self, other: dict) -> list[str]:
        """What another plan, from a file, has that is not the same."""
        return [
            f"{key}: {other.get(key)} -> {value}"
            for key, value in dataclasses.asdict(self).items()
            if other.get(key) != value
        ]


def write_array_record(
    source,
    plan: ConversionPlan,
    folder: Path,
    threads: int,
    resized: Callable[[bytes, str], bytes] | None,
    progress: Callable[[int], None],
) -> dict:
    """Writes a source as a folder of ArrayRecord, and returns its manifest.

    A shard takes its name when it is whole; called again after a kill, it goes on with
    the first that is not there. Called again when all is done, it changes nothing.

    Args:
      resized: (image file, where) -> a file of its resized image; None to keep it.
      progress: called with the number of samples that were done.

    Raises:
      OutputError: the folder holds another set, cannot be written, or is being written
        by another process.
    """
    if str(folder).startswith("gs:/"):
        raise OutputError(
            f"{folder}: write to a folder, and copy it with gcloud storage cp -r, or "
            f"mount the bucket with gcsfuse"
        )
    with exclusive_lock(folder):
        if not (folder / MANIFEST).exists():
            _begin(folder, plan)
            shards = list(_shards(source, plan, folder, threads, resized, progress))
            write_json(folder / MANIFEST, _manifest(plan, shards))
        else:
            progress(plan.samples)
        manifest = read_manifest(folder)
        changed = plan.differences(manifest)
        if changed:
            raise OutputError(
                f"{folder} holds a set already ({', '.join(changed)}); choose another "
                f"--out"
            )
        check_shards(folder, manifest)
        with output_errors(folder):
            for shard in manifest["shards"]:
                _about(folder / shard["file"]).unlink(missing_ok=True)
            (folder / _PLAN).unlink(missing_ok=True)
        return manifest


def _manifest(plan: ConversionPlan, shards: list[dict]) -> dict:
    bad = collections.Counter()
    for shard in shards:
        bad.update(shard["bad"])
    return dataclasses.asdict(plan) | {"bad": dict(bad), "shards": shards}


def _begin(folder: Path, plan: ConversionPlan) -> None:
    """Writes the plan, unless it is there already. OutputError if another one is."""
    path = folder / _PLAN
    if not path.exists():
        write_json(path, dataclasses.asdict(plan))
    changed = plan.differences(read_json(path, error=OutputError))
    if changed:
        raise OutputError(
            f"{folder} is half of another set ({', '.join(changed)}); use the same "
            f"command, or another --out"
        )


def _shards(
    source, plan: ConversionPlan, folder: Path, threads: int, resized, progress
):
    """What the manifest says of each shard; those that are not there are written."""
    for number, start in enumerate(range(0, plan.samples, plan.shard_size)):
        indices = range(start, min(start + plan.shard_size, plan.samples))
        path = folder / f"data-{number:05d}.array_record"
        about = _read_about(path)
        if about is not None:
            progress(len(indices))
        else:
            packed = ordered_map(
                lambda index: _packed(source, index, resized), indices, threads
            )
            about = _write_shard(path, packed, progress)
            write_json(_about(path), about)
        yield about


def _packed(source, index: int, resized) -> tuple[bytes, str]:
    """The record of a sample, and the reason if it is a bad one."""
    try:
        sample = source[index]
        if isinstance(sample.image, np.ndarray):
            sample = dataclasses.replace(sample, image=encode_png(sample.image))
        elif sample.image is not None and resized:
            image = resized(sample.image, source.where(index))
            sample = dataclasses.replace(sample, image=image)
        return pack(sample), ""
    except InvalidSample as bad:
        return pack_bad(bad), bad.reason


def _write_shard(path: Path, packed: Iterator[tuple[bytes, str]], progress) -> dict:
    """Writes a shard whole or not at all; returns what the manifest says of it."""
    records, bad = 0, collections.Counter()
    with atomic_write(path) as temporary:
        writer = array_record().ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for content, reason in packed:
                with _writer_errors():
                    writer.write(content)
                records += 1
                bad.update([reason] if reason else [])
                progress(1)
        finally:
            with _writer_errors():
                writer.close()
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    return {
        "file": path.name,
        "records": records,
        "bytes": size,
        "sha256": digest,
        "bad": dict(bad),
    }


@contextlib.contextmanager
def _writer_errors() -> Iterator[None]:
    """ArrayRecord's RuntimeError for a full disk as the OSError that it is."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _read_about(path: Path) -> dict | None:
    """What the manifest says of a shard that is whole; None if it is not known to be."""
    if not path.is_file():
        return None
    try:
        return read_json(_about(path))
    except (MissingInputError, DataError):
        return None


def _about(path: Path) -> Path:
    """The file that says that a shard is whole."""
    return path.with_suffix(".json")
