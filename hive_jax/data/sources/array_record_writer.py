"""Converts a dataset to the folder of ArrayRecord that array_record.py reads.

While it is written the folder has plan.json, what it will hold, and `data-00000.json`
and so on beside each complete shard. The manifest replaces all of these at the end.
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
    check_shards,
    import_array_record,
    pack,
    pack_invalid,
    read_manifest,
)
from hive_jax.data.sources.base import DataSource
from hive_jax.data.sources.split import group_samples
from hive_jax.errors import DataError, MissingInputError, OutputError
from hive_jax.io import atomic_write, output_errors, read_json, write_json
from hive_jax.locks import exclusive_lock

_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """Intended content of a folder; a folder with another plan is not overwritten.

    Attributes:
      source: as in data.source.
      fingerprint: of the source.
      tag_names: of the source.
      has_conversations: of the source.
      samples: their number.
      images: [size, preprocessing] that images are resized to, or None to keep files.
      shard_size: samples of a shard.
    """

    source: str
    fingerprint: str
    tag_names: list[str]
    has_conversations: bool
    samples: int
    images: list | None
    shard_size: int

    def differences(self, other: dict) -> list[str]:
        """Lines "key: other -> this" of each key in which another plan differs."""
        return [
            f"{key}: {other.get(key)} -> {value}"
            for key, value in dataclasses.asdict(self).items()
            if other.get(key) != value
        ]


def plan_conversion(
    name: str, source: DataSource, images: list | None, shard_size: int
) -> ConversionPlan:
    """Plans the conversion of a whole dataset.

    Args:
      name: as in data.source.
      source: the dataset.
      images: [size, preprocessing] to resize images to, or None to keep files.
      shard_size: samples of a shard.
    """
    return ConversionPlan(
        name,
        source.fingerprint,
        list(source.tag_names),
        source.has_conversations,
        len(source),
        images,
        shard_size,
    )


def write_array_record(
    source: DataSource,
    plan: ConversionPlan,
    folder: Path,
    threads: int,
    resize: Callable[[bytes, str], bytes] | None,
    progress: Callable[[int], None],
) -> dict:
    """Writes a dataset as a folder of ArrayRecord; resumes after an interruption.

    A shard appears when it is complete; a later call goes on with the first that is
    missing. On a complete folder it changes nothing.

    Args:
      source: the dataset.
      plan: of the same dataset.
      folder: to write.
      threads: that read and resize.
      resize: (image file, where) -> the file of its resized image; None to keep files.
      progress: called with the number of samples done since the last call.

    Returns:
      The manifest.

    Raises:
      OutputError: the folder holds another dataset, cannot be written, or is being
        written by another process.
    """
    # Two processes that resume one conversion would write the same shards.
    with exclusive_lock(folder):
        if not (folder / MANIFEST).exists():
            _begin(folder, plan)
            shards = list(_shards(source, plan, folder, threads, resize, progress))
            manifest = _manifest(plan, shards)
            write_json(folder / MANIFEST, manifest)
        else:
            progress(plan.samples)
        manifest = read_manifest(folder)
        changed = plan.differences(manifest)
        if changed:
            raise OutputError(
                f"{folder} holds another dataset ({', '.join(changed)}); choose another "
                f"folder"
            )
        check_shards(folder, manifest)
        # Only now: without a manifest, these files are what a resumed conversion goes by.
        with output_errors(folder):
            for shard in manifest["shards"]:
                _shard_info(folder / shard["file"]).unlink(missing_ok=True)
            (folder / _PLAN).unlink(missing_ok=True)
        return manifest


def _manifest(plan: ConversionPlan, shards: list[dict]) -> dict:
    bad, images = collections.Counter(), []
    for shard in shards:
        bad.update(shard["bad"])
        images += shard.pop("images")
    groups = group_samples(images).tolist()
    return dataclasses.asdict(plan) | {
        "bad": dict(bad),
        # Sample -> an earlier one with the same image; keys of JSON are texts.
        "shared_images": {str(i): one for i, one in enumerate(groups) if i != one},
        "shards": shards,
    }


def _begin(folder: Path, plan: ConversionPlan) -> None:
    """Writes the plan. Raises OutputError if the folder has another one."""
    # Before the first shard, so that no later command adds shards of other settings.
    path = folder / _PLAN
    if not path.exists():
        write_json(path, dataclasses.asdict(plan))
    changed = plan.differences(read_json(path, error=OutputError))
    if changed:
        raise OutputError(
            f"{folder} has an unfinished conversion of another dataset "
            f"({', '.join(changed)}); use the same command, or another folder"
        )


def _shards(
    source, plan: ConversionPlan, folder: Path, threads: int, resize, progress
) -> Iterator[dict]:
    """Yields the entry of each shard, as `_write_shard`; writes missing shards."""
    for number, start in enumerate(range(0, plan.samples, plan.shard_size)):
        indices = range(start, min(start + plan.shard_size, plan.samples))
        path = folder / f"data-{number:05d}.array_record"
        shard = _read_shard_info(path)
        if shard is not None:
            progress(len(indices))
        else:
            records = ordered_map(
                lambda index: _make_record(source, index, resize), indices, threads
            )
            # The info last: a shard without it is written again.
            shard = _write_shard(path, records, progress)
            write_json(_shard_info(path), shard)
        yield shard


def _make_record(source, index: int, resize) -> tuple[bytes, str, str | None]:
    """The record of a sample, the reason if it is an invalid one, and a hash of its
    image, None if it has none."""
    try:
        sample = source[index]
        if isinstance(sample.image, np.ndarray):
            sample = dataclasses.replace(sample, image=encode_png(sample.image))
        elif sample.image is not None and resize:
            image = resize(sample.image, source.describe(index))
            sample = dataclasses.replace(sample, image=image)
    except InvalidSample as invalid:
        return pack_invalid(invalid), invalid.reason, None
    # By content, for not all formats name their images. Of 64 bits, since a dataset may
    # have hundreds of millions.
    image = None
    if sample.image is not None:
        image = hashlib.sha256(sample.image).hexdigest()[:16]
    return pack(sample), "", image


def _write_shard(
    path: Path, records: Iterator[tuple[bytes, str, str | None]], progress
) -> dict:
    """Writes a shard atomically; returns its entry in the manifest, and its "images"."""
    bad, images = collections.Counter(), []
    with atomic_write(path) as temporary:
        # Records are read one by one in random order, so none are grouped.
        options = "group_size:1"
        writer = import_array_record().ArrayRecordWriter(str(temporary), options)
        try:
            for content, reason, image in records:
                with _writer_errors():
                    writer.write(content)
                images.append(image)
                bad.update([reason] if reason else [])
                progress(1)
        finally:
            with _writer_errors():
                writer.close()
        # Of the file and not of the records, so that sha256sum can check a copy.
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    return {
        "file": path.name,
        "records": len(images),
        "bytes": size,
        "sha256": digest,
        "bad": dict(bad),
        "images": images,
    }


@contextlib.contextmanager
def _writer_errors() -> Iterator[None]:
    """Raises ArrayRecord's RuntimeError, e.g. for a full disk, as the OSError it is."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _read_shard_info(path: Path) -> dict | None:
    """The entry of a shard; None unless the shard is known to be complete."""
    if not path.is_file():
        return None
    try:
        return read_json(_shard_info(path))
    except (MissingInputError, DataError):
        return None


def _shard_info(path: Path) -> Path:
    """Returns the path of the file that marks a shard as complete."""
    return path.with_suffix(".json")
