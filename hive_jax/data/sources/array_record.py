"""Datasets in ArrayRecord, for pods: shards that any host reads in any order.

A folder has `data-00000.array_record` and so on, and manifest.json: what it was made
from, how many samples each shard has, its hash, and which samples share an image.
array_record_writer.py writes it.

A record is a sample in MessagePack: [image file or nil, [[text, target, tags, role], ...],
image_before], or [reason, where, detail] for an invalid one. A record that is neither,
e.g. damaged on the disk, is an invalid sample.
"""

import bisect
import dataclasses
import hashlib
import itertools
from pathlib import Path

import msgpack

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.types import ROLES, Sample, Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.io import read_json

MANIFEST = "manifest.json"


class ArrayRecordSource:
    """Random access to a folder that `write_array_record` has written.

    Args:
      path: the folder.
      options: of the run; images that were resized must be resized to the same.

    Raises:
      MissingInputError: the manifest or a shard is missing.
      DataError: the manifest is malformed, or a shard is not as it was written.
      ConfigError: the images were resized to something else.
    """

    classes = notes = ()

    def __init__(self, path: str, options: SourceOptions):
        self._path, self._with_image = Path(path), options.with_image
        manifest = read_manifest(self._path)
        stored = manifest["images"]
        expected = [options.image_size, options.preprocessing]
        if stored and stored != expected:
            raise ConfigError(
                f"{path}: its images were resized to {stored}; this run has {expected} "
                f"(model.encoder.image_size, data.preprocessing). Prepare it again"
            )
        # Sizes, not hashes: to hash a large dataset at each start would take hours.
        check_shards(self._path, manifest)
        self.tag_names = tuple(manifest["tag_names"])
        self.has_conversations = manifest["has_conversations"]
        self._shared = manifest["shared_images"]
        self._names = [shard["file"] for shard in manifest["shards"]]
        counts = [shard["records"] for shard in manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        self._readers = [
            _open_shard(self._path / name, count)
            for name, count in zip(self._names, counts, strict=True)
        ]
        hashes = [shard["sha256"] for shard in manifest["shards"]]
        self.fingerprint = hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the bytes of a file. Raises InvalidSample."""
        shard, record = self._locate(index)
        try:
            (content,) = self._readers[shard].read([record])
        except RuntimeError as error:  # all that ArrayRecord raises
            raise InvalidSample("damaged", self.describe(index), str(error)) from None
        sample = unpack(content, self.describe(index), self.tag_names)
        return sample if self._with_image else dataclasses.replace(sample, image=None)

    def image_name(self, index: int) -> str:
        """Name of the image of sample `index`; see DataSource."""
        return f"{self._path}, image {self._shared.get(str(index), index)}"

    def describe(self, index: int) -> str:
        shard, record = self._locate(index)
        return f"{self._path / self._names[shard]}, record {record}"

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def read_manifest(folder: Path) -> dict:
    """Reads the manifest of a folder.

    Raises:
      MissingInputError: there is none.
      DataError: it is malformed.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise MissingInputError(
            f"{folder} has no {MANIFEST}; expected a complete folder that "
            f"hive_jax.prepare_data has written (run its command again to resume it)"
        )
    manifest = read_json(file)
    match manifest:
        case {
            "images": None | [*_],
            "tag_names": [*tag_names],
            "has_conversations": bool(),
            "shared_images": {**shared},
            "shards": [_, *_] as shards,
        } if (
            all(map(_is_shard, shards))
            and all(isinstance(name, str) for name in tag_names)
            and all(isinstance(first, int) for first in shared.values())
        ):
            return manifest
    raise DataError(
        f"{file} was not written by hive_jax.prepare_data: choose another folder, or "
        f"prepare the dataset again"
    )


def _is_shard(value) -> bool:
    match value:
        case {
            "file": str() as name,
            "records": int() as records,
            "bytes": int(),
            "sha256": str(),
        }:
            # A plain name: the manifest may not lead out of its folder.
            return Path(name).name == name and records > 0
    return False


def check_shards(folder: Path, manifest: dict) -> None:
    """Compares the sizes of all shards with the manifest.

    Args:
      folder: that holds the shards.
      manifest: as `read_manifest` returns it.

    Raises:
      MissingInputError: a shard is missing.
      DataError: a shard has another size.
    """
    for shard in manifest["shards"]:
        path, expected = folder / shard["file"], shard["bytes"]
        if not path.is_file():
            raise MissingInputError(f"{path}: no such shard; it is in the manifest")
        size = path.stat().st_size
        if size != expected:
            raise DataError(f"{path}: {size} bytes; expected {expected}")


def _open_shard(path: Path, expected: int):
    # Random access gains nothing from reading ahead, which also starts threads.
    options = "readahead_buffer_size:0"
    try:
        reader = import_array_record().ArrayRecordReader(str(path), options)
        count = reader.num_records()
    except RuntimeError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if count != expected:
        raise DataError(f"{path}: {count} records; the manifest says {expected}")
    return reader


def import_array_record():
    """Imports the ArrayRecord package. Raises MissingInputError without it."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise MissingInputError(
            "ArrayRecord needs a package: pip install array_record"
        ) from None
    return array_record_module


def pack(sample: Sample) -> bytes:
    """Encodes a sample as a record; its image is the bytes of a file, or None."""
    # Lists, for maps would repeat their keys in each record.
    segments = [[s.text, s.target, s.tags, s.role] for s in sample.segments]
    return msgpack.packb([sample.image, segments, sample.image_before])


def pack_invalid(invalid: InvalidSample) -> bytes:
    """Encodes an invalid sample as a record."""
    return msgpack.packb([invalid.reason, invalid.where, invalid.detail])


def unpack(content: bytes, where: str, tag_names: tuple[str, ...] = ()) -> Sample:
    """Decodes the sample of a record.

    Args:
      content: the record.
      where: the file and record, for errors.
      tag_names: that its tags may have.

    Raises:
      InvalidSample: the one that was packed, or "damaged".
    """
    try:
        match msgpack.unpackb(content):
            case [None | bytes() as image, [*segments], int() as before]:
                unpacked = tuple(_unpack_segment(s, tag_names) for s in segments)
                return Sample(image, unpacked, before)
            case [str() as reason, str() as source, str() as detail]:
                invalid = InvalidSample(reason, source, detail)
            case _:
                invalid = InvalidSample(
                    "damaged", where, "is not the record of a sample"
                )
    except (ValueError, msgpack.UnpackException) as error:
        invalid = InvalidSample("damaged", where, str(error))
    raise invalid


def _unpack_segment(packed, tag_names: tuple[str, ...]) -> Segment:
    match packed:
        case [str() as text, bool() as target, [*tags], role] if role in ("", *ROLES):
            tags = tuple(_unpack_tag(t, tag_names) for t in tags)
            return Segment(text, target, tags, role)
    raise ValueError("has a malformed segment")


def _unpack_tag(packed, tag_names: tuple[str, ...]) -> tuple[int, int, str]:
    match packed:
        case [int() as start, int() as end, str() as name] if name in tag_names:
            return start, end, name
    raise ValueError("has a malformed tag")
