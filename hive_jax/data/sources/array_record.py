"""Sets in ArrayRecord, for pods: shards of samples that any host reads in any order.

A folder has `data-00000.array_record` and so on, and manifest.json: what it was made
from, how many samples each shard has, and its hash. preparing.py writes it.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import msgpack

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.types import KINDS, Sample, Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError


def pack(sample: Sample) -> bytes:
    """A sample whose image is the content of a file, or None."""
    segments = [[s.text, s.target, s.kinds] for s in sample.segments]
    return msgpack.packb([sample.image, segments, sample.image_before])


def pack_bad(bad: InvalidSample) -> bytes:
    return msgpack.packb([bad.reason, bad.where, bad.detail])


def unpack(content: bytes, where: str) -> Sample:
    """The sample of a record. Raises InvalidSample: the one that was packed, or "damaged"
    at `where`."""
    try:
        match msgpack.unpackb(content):
            case [None | bytes() as image, [*segments], int() as before]:
                return Sample(image, tuple(map(_segment, segments)), before)
            case [str() as reason, str() as source, str() as detail]:
                bad = InvalidSample(reason, source, detail)
            case _:
                bad = InvalidSample("damaged", where, "is no record of a sample")
    except (ValueError, msgpack.UnpackException) as error:
        bad = InvalidSample("damaged", where, str(error))
    raise bad


def _segment(packed) -> Segment:
    match packed:
        case [str() as text, bool() as target, [*kinds]]:
            return Segment(text, target, tuple(map(_kind, kinds)))
    raise ValueError("has a segment that is none")


def _kind(packed) -> tuple[int, int, str]:
    match packed:
        case [int() as start, int() as end, str() as name] if name in KINDS:
            return start, end, name
    raise ValueError("has a kind of words that is none")


MANIFEST = "manifest.json"


class ArrayRecordSource:
    """Random access to a folder that `prepare` has written.

    Args:
      image_size, preprocessing: of the run; images that were resized must be resized
        to the same.
      with_image: False for text alone.

    Raises:
      MissingInputError: there is no manifest, or a shard of it is missing.
      DataError: the manifest is another's, or a shard has another size than it had.
      ConfigError: the images were resized to something else.
    """

    def __init__(
        self,
        path: str,
        *,
        image_size: int,
        preprocessing: str,
        with_image: bool = True,
    ):
        self._path, self._with_image = Path(path), with_image
        manifest = read_manifest(self._path)
        made, wanted = manifest["images"], [image_size, preprocessing]
        if made and made != wanted:
            raise ConfigError(
                f"{path}: its images were resized to {made}; this run has {wanted} "
                f"(model.encoder.image_size, data.preprocessing). Prepare it again"
            )
        check_shards(self._path, manifest)
        self._names = [shard["file"] for shard in manifest["shards"]]
        counts = [shard["records"] for shard in manifest["shards"]]
        self._ends = list(itertools.accumulate(counts))
        self._readers = [
            _reader(self._path / name, count)
            for name, count in zip(self._names, counts, strict=True)
        ]
        hashes = [shard["sha256"] for shard in manifest["shards"]]
        self.fingerprint = hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises InvalidSample."""
        shard, inside = self._found(index)
        try:
            (content,) = self._readers[shard].read([inside])
        except RuntimeError as error:
            raise InvalidSample("damaged", self.where(index), str(error)) from None
        sample = unpack(content, self.where(index))
        return sample if self._with_image else dataclasses.replace(sample, image=None)

    def where(self, index: int) -> str:
        shard, inside = self._found(index)
        return f"{self._path / self._names[shard]}, record {inside}"

    def _found(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder.

    Raises:
      MissingInputError: there is none.
      DataError: it cannot be read, or is another's.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise MissingInputError(
            f"{folder} holds no {MANIFEST}; expected a folder of tools/prepare_data.py "
            f"that is complete (run its command again to go on)"
        )
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    match manifest:
        case {"images": None | [*_], "shards": [_, *_] as shards} if all(
            map(_is_shard, shards)
        ):
            return manifest
    raise DataError(
        f"{file} is not one of tools/prepare_data.py: choose another folder, or prepare "
        f"the set again"
    )


def _is_shard(value) -> bool:
    match value:
        case {
            "file": str() as name,
            "records": int() as records,
            "bytes": int(),
            "sha256": str(),
        }:
            return Path(name).name == name and records > 0
    return False


def check_shards(folder: Path, manifest: dict) -> None:
    """Raises MissingInputError or DataError if a shard is not what it was, by size."""
    for shard in manifest["shards"]:
        path, expected = folder / shard["file"], shard["bytes"]
        if not path.is_file():
            raise MissingInputError(f"{path}: no such shard; it is in the manifest")
        size = path.stat().st_size
        if size != expected:
            raise DataError(f"{path}: {size} bytes; expected {expected}")


def _reader(path: Path, records: int):
    try:
        reader = array_record().ArrayRecordReader(str(path), "readahead_buffer_size:0")
        found = reader.num_records()
    except RuntimeError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if found != records:
        raise DataError(f"{path}: {found} records; the manifest says {records}")
    return reader


def array_record():
    """The module that reads and writes the format. MissingInputError without it."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise MissingInputError(
            "ArrayRecord needs a package: pip install array_record"
        ) from None
    return array_record_module
