"""Sets in ArrayRecord, for pods: shards of samples that any host reads in any order.

A folder has `data-00000.array_record` and so on, and manifest.json: what it was made
from, how many samples each shard has, and its hash. A record is a sample in
MessagePack, [image file or nil, [[text, target, kinds], ...], image_before], or a bad
one, [reason, where, detail].
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np

from hive_jax.data.bad import BadSample
from hive_jax.data.batch import Sample, Segment
from hive_jax.data.images import as_png
from hive_jax.errors import ConfigError, DataError, MissingInputError, OutputError

MANIFEST = "manifest.json"
_AT_ONCE = 256  # samples read ahead of the one that is written


class Prepared:
    """Random access to a folder that `prepare` has written.

    Args:
      image_size, preprocessing: of the run; images that were resized must be resized
        to the same.

    Raises:
      MissingInputError: there is no manifest, or a shard of it is missing.
      DataError: a shard has another size than it had.
      ConfigError: the images were resized to something else.
    """

    def __init__(self, path: str, *, image_size: int, preprocessing: str):
        self._path = Path(path)
        manifest = read_manifest(path)
        made, wanted = manifest["images"], [image_size, preprocessing]
        if made and made != wanted:
            raise ConfigError(
                f"{path}: its images were resized to {made}; this run has {wanted} "
                f"(model.encoder.image_size, data.preprocessing). Prepare it again"
            )
        for shard in manifest["shards"]:
            _check_shard(self._path / shard["file"], shard["bytes"])
        self._names = [shard["file"] for shard in manifest["shards"]]
        counts = (shard["records"] for shard in manifest["shards"])
        self._ends = list(itertools.accumulate(counts))
        self._readers = [_reader(self._path / name) for name in self._names]
        hashes = [shard["sha256"] for shard in manifest["shards"]]
        self.fingerprint = hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises BadSample."""
        shard, inside = self._found(index)
        try:
            (content,) = self._readers[shard].read([inside])
            record = msgpack.unpackb(content)
            if len(record) == 3 and isinstance(record[2], int):
                image, segments, image_before = record
                return Sample(image, tuple(map(_segment, segments)), image_before)
            reason, where, detail = record
        except (ValueError, TypeError, RuntimeError, msgpack.UnpackException) as error:
            raise BadSample("damaged", self.where(index), str(error)) from None
        raise BadSample(reason, where, detail)

    def where(self, index: int) -> str:
        shard, inside = self._found(index)
        return f"{self._path / self._names[shard]}, record {inside}"

    def _found(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def _segment(packed: list) -> Segment:
    text, target, kinds = packed
    return Segment(text, target, tuple(map(tuple, kinds)))


def read_manifest(path: str) -> dict:
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise MissingInputError(
            f"{path} holds no {MANIFEST}; expected a folder of tools/prepare_data.py "
            f"that is complete (run its command again to go on)"
        )
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}") from None


@dataclasses.dataclass(frozen=True)
class Plan:
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


def prepare(
    source,
    plan: Plan,
    folder: Path,
    threads: int,
    resized: Callable[[bytes, str], bytes] | None,
    progress: Callable[[int], None],
) -> dict:
    """Writes a source as a folder of ArrayRecord, and returns its manifest.

    A shard takes its name when it is whole; called again after a kill, it goes on with
    the first that is not there.

    Args:
      resized: (image file, where) -> a file of its resized image; None to keep it.
      progress: called with the number of samples that were done.

    Raises:
      OutputError: the folder holds another set, or cannot be written.
    """
    _begin(folder, plan)
    shards = []
    with ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(range(0, plan.samples, plan.shard_size)):
            indices = range(start, min(start + plan.shard_size, plan.samples))
            about = folder / f"data-{number:05d}.json"
            if not about.is_file():
                packed = in_order(
                    pool, lambda i: _packed(source, int(i), resized), indices
                )
                _write_shard(about, packed, progress)
            else:
                progress(len(indices))
            shards.append(json.loads(about.read_text("utf-8")))
    bad = Counter()
    for shard in shards:
        bad.update(shard["bad"])
    manifest = {**dataclasses.asdict(plan), "bad": dict(bad), "shards": shards}
    _write_json(folder / MANIFEST, manifest)
    for shard in shards:
        (folder / shard["file"]).with_suffix(".json").unlink()
    (folder / "plan.json").unlink()
    return manifest


def _begin(folder: Path, plan: Plan) -> None:
    if str(folder).startswith("gs:/"):
        raise OutputError(
            f"{folder}: write to a folder, and copy it with gcloud storage cp -r, or "
            f"mount the bucket with gcsfuse"
        )
    if (folder / MANIFEST).exists():
        raise OutputError(f"{folder} holds a set already; choose another --out")
    path, wanted = folder / "plan.json", dataclasses.asdict(plan)
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error}") from error
        _write_json(path, wanted)
    began = json.loads(path.read_text("utf-8"))
    if began != wanted:
        changed = [
            f"{k}: {began[k]} -> {wanted[k]}" for k in wanted if began[k] != wanted[k]
        ]
        raise OutputError(
            f"{folder} is half of another set ({', '.join(changed)}); use the same "
            f"command, or another --out"
        )


def _packed(source, index: int, resized) -> tuple[bytes, str]:
    """The record of a sample, and the reason if it is a bad one."""
    try:
        sample = source[index]
        image = sample.image
        if isinstance(image, np.ndarray):
            image = as_png(image)
        elif image is not None and resized:
            image = resized(image, source.where(index))
        segments = [[s.text, s.target, s.kinds] for s in sample.segments]
        return msgpack.packb([image, segments, sample.image_before]), ""
    except BadSample as bad:
        return msgpack.packb([bad.reason, bad.where, bad.detail]), bad.reason


def in_order(pool, function, indices) -> Iterator:
    """function(index) for each index in order, some of them ahead."""
    indices = iter(indices)
    ahead = [pool.submit(function, i) for i in itertools.islice(indices, _AT_ONCE)]
    while ahead:
        yield ahead.pop(0).result()
        ahead += [pool.submit(function, i) for i in itertools.islice(indices, 1)]


def _write_shard(about: Path, packed: Iterator[tuple[bytes, str]], progress) -> None:
    path = about.with_suffix(".array_record")
    temporary = path.with_suffix(".tmp")
    records, bad = 0, Counter()
    writer = _module().ArrayRecordWriter(str(temporary), "group_size:1")
    try:
        for content, reason in packed:
            writer.write(content)
            records += 1
            bad.update([reason] if reason else [])
            progress(1)
    finally:
        writer.close()
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = temporary.stat().st_size
    os.replace(temporary, path)
    _write_json(
        about,
        {
            "file": path.name,
            "records": records,
            "bytes": size,
            "sha256": digest,
            "bad": dict(bad),
        },
    )


def _write_json(path: Path, value) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _check_shard(path: Path, size: int) -> None:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such shard; it is in the manifest")
    if path.stat().st_size != size:
        raise DataError(f"{path}: {path.stat().st_size} bytes; expected {size}")


def _reader(path: Path):
    try:
        return _module().ArrayRecordReader(str(path), "readahead_buffer_size:0")
    except RuntimeError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _module():
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise MissingInputError(
            "ArrayRecord needs a package: pip install array_record"
        ) from None
    return array_record_module
