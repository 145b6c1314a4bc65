"""How fast samples are read: files of 480 x 640 pixels to batches on the device."""

import functools
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from hive_jax.config import MeshConfig
from hive_jax.console import log
from hive_jax.data.augmentation import augment_image
from hive_jax.data.image_io import encode_png, open_image
from hive_jax.data.invalid import InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.data.sources.array_record_writer import (
    plan_conversion,
    write_array_record,
)
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.tokenizer import BUILTIN, load_tokenizer
from hive_jax.data.transforms import decode
from hive_jax.errors import MissingInputError
from hive_jax.training.sharding import batch_sharding, make_mesh

_HEIGHT, _WIDTH = 480, 640
_BATCH = 32


def reading(image_size: int, count: int, threads: int) -> Iterator[dict]:
    """Measures images per second of each step of the loader, then of all together.

    Args:
      image_size: that images are resized to.
      count: images of the set.
      threads: of the loader; its steps are timed on one.
    """
    files = [photograph(number) for number in range(count)]
    # The steps of the loader on one thread, then the loader with all of its threads.
    yield _timed("decode", count, lambda: [_decoded(f) for f in files])
    yield _timed(
        "decode and resize",
        count,
        lambda: [decode(f, image_size, "hf_bicubic", "") for f in files],
    )
    yield _timed(
        "decode and augment",
        count,
        lambda: [_augmented(f, image_size, p) for p, f in enumerate(files)],
    )
    with tempfile.TemporaryDirectory() as folder:
        for what, source in sets(Path(folder), files, image_size, threads):
            steps = count // _BATCH
            reader = loader(source, image_size, threads, _BATCH)
            drain = functools.partial(_drained, reader, steps)
            row = _timed(f"batches, {what}", steps * _BATCH, drain)
            yield row | {"threads": threads}


def photograph(number: int) -> bytes:
    """Returns a JPEG as slow to decode as a photograph: noise on soft shapes."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    soft = np.asarray(small.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC))
    # Noise that JPEG has to store: flat areas decode far faster.
    noisy = soft + rng.normal(0, 8, soft.shape)
    out = BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def _decoded(content: bytes) -> None:
    with Image.open(BytesIO(content)) as image:
        # Image.open reads the header alone.
        image.load()


def _augmented(content: bytes, image_size: int, position: int) -> None:
    with open_image(content, "") as image:
        augment_image(image, image_size, 0, position)


def sets(folder: Path, files: list[bytes], image_size: int, threads: int):
    """Yields the same dataset in every storage format, as (format, source).

    ArrayRecord is left out, with a message, where its package is not installed.

    Args:
      folder: an empty folder to write the files to.
      files: JPEG files, one a sample.
      image_size: side of the images that training reads, in pixels.
      threads: number of threads that write ArrayRecord.
    """
    options = SourceOptions(image_size, "hf_bicubic")
    records = []
    (folder / "images").mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, content in enumerate(files):
            name = f"{number}.jpg"
            (folder / "images" / name).write_bytes(content)
            archive.writestr(name, content)
            # Texts are short: images take the time.
            turns = [{"from": "gpt", "value": f"a star, a cube and {number} cones"}]
            records.append({"image": name, "conversations": turns})
    (folder / "chat.json").write_text(json.dumps(records))
    chat = f"llava:{folder}/chat.json,images={folder}/images"
    yield "folder", whole_source(chat, options)
    yield "zip", whole_source(f"{chat}.zip", options)

    def resized(content: bytes, where: str) -> bytes:
        return encode_png(decode(content, image_size, "hf_bicubic", where))

    for name, images, change in (
        ("ArrayRecord", None, None),
        ("ArrayRecord, resized", [image_size, "hf_bicubic"], resized),
    ):
        source = whole_source(chat, options)
        out = folder / ("resized" if images else "as_they_are")
        plan = plan_conversion(chat, source, images, 8192)
        try:
            write_array_record(source, plan, out, threads, change, lambda count: None)
        except MissingInputError as error:
            log(f"{name} is left out: {error}")
            continue
        yield name, whole_source(f"prepared:{out}", options)


def loader(
    source, image_size: int, threads: int, batch_size: int, num_tokens: int = 32
) -> Loader:
    """Returns a loader of one process and device, in shuffled order.

    Args:
      source: the dataset; a single invalid sample ends the benchmark.
      image_size: side of the images, in pixels.
      threads: number of reading threads.
      batch_size: samples of a batch.
      num_tokens: text length.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Loader(
        source,
        load_tokenizer(BUILTIN),
        sampler=ShuffledSampler(len(source), seed=0),
        batch_size=batch_size,
        num_tokens=num_tokens,
        image_size=image_size,
        preprocessing="hf_bicubic",
        # 0.0: not a single invalid sample is allowed.
        invalid=InvalidSampleLog("train", len(source), 0.0),
        sharding=batch_sharding(mesh, batch_size),
        threads=threads,
    )


def _drained(loader: Loader, steps: int) -> None:
    for batch in loader.batches(0, steps):
        # Transfers are asynchronous.
        batch.image.block_until_ready()


def _timed(what: str, count: int, work: Callable[[], object]) -> dict:
    # Files come into the page cache, code is imported.
    work()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"what": what, "images_per_second": count / seconds, "threads": 1}
