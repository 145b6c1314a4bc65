"""Trains on datasets with damaged images: each is counted, named and never used."""

import itertools
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from hive_jax.config import DataConfig, MeshConfig
from hive_jax.data.invalid import InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.data.sources.registry import make_source
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.training.sharding import batch_sharding, make_mesh
from tools.fault_suite.figure import Figure
from tools.fault_suite.image_files import DAMAGED, encoded, photograph

RATES = (0, 1, 5, 20, 50)  # percent
_RECORDS, _BATCH, _EPOCHS = 240, 8, 2
_FILES = ("empty", "page", "zeros", "cut", "cut png", "gif", "svg", "pickle", "huge")
# Kind of damage -> the reason that it is counted by.
KINDS = {
    **{kind: DAMAGED[kind][1] for kind in _FILES},
    "missing": "missing",
    "outside": "unsafe path",
    "pipe": "unsafe path",
}


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Reads two epochs of 240 records for each rate of damaged images.

    Args:
      count: rates, of `RATES`.
      folder: for the datasets.
      cache: not used.
    """
    counted, failures = [], []
    for rate in RATES[:count]:
        injected, problems = _read(folder / f"{rate}_percent", rate)
        counted.append(injected)
        failures += [f"{rate} %: {problem}" for problem in problems]
    seen = (
        f"{len(KINDS)} kinds at {', '.join(map(str, RATES[:count]))} %: "
        f"{', '.join(map(str, counted))} injected, counted and named; none used; every "
        "good one once an epoch"
        if not failures
        else f"{len(failures)} counts differ"
    )
    return Figure(len(counted) * _RECORDS, seen, failures)


def write_images(folder: Path, rate: int) -> tuple[str, dict[int, str]]:
    """Writes a dataset whose record i has the caption i.

    Args:
      folder: for its files.
      rate: percent of the images that are damaged.

    Returns:
      data.source, and the kind of damage of each damaged record.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    numbers = random.Random(rate).sample(range(_RECORDS), _RECORDS * rate // 100)
    kinds = itertools.cycle(KINDS)
    damages = {number: next(kinds) for number in numbers}
    records = []
    for number in range(_RECORDS):
        name, kind = f"{number}.jpg", damages.get(number)
        if kind == "outside":
            (folder / name).write_bytes(encoded(photograph(number)))
        elif kind == "pipe":
            os.mkfifo(images / name)
        elif kind in _FILES:
            (images / name).write_bytes(DAMAGED[kind][0])
        elif kind is None:
            (images / name).write_bytes(encoded(photograph(number)))
        turns = [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": f"{number}"},
        ]
        image = f"../{name}" if kind == "outside" else name
        records.append({"id": f"{number}", "image": image, "conversations": turns})
    (folder / "chat.json").write_text(json.dumps(records))
    return f"llava:{folder}/chat.json,images={images}", damages


def _read(folder: Path, rate: int) -> tuple[int, list[str]]:
    """Returns the damaged images of the train split, and what was wrong."""
    text, damages = write_images(folder, rate)
    data = DataConfig(
        source=text,
        tokenizer="builtin:tabletop",
        max_bad_fraction=1.0,
        validation_size=24,
    )
    source = make_source(data, "train", image_size=16, with_image=True)
    # The split decides which records are in it.
    numbers = [_number(source.describe(index)) for index in range(len(source))]
    tokenizer = load_tokenizer("builtin:tabletop")
    invalid = InvalidSampleLog("train", len(source), 1.0, source.describe)
    invalid.keep_in(folder / "bad_samples.jsonl", 0)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    loader = Loader(
        source,
        tokenizer,
        sampler=ShuffledSampler(len(source), 0),
        batch_size=_BATCH,
        num_tokens=12,
        image_size=16,
        preprocessing="hf_bicubic",
        invalid=invalid,
        sharding=batch_sharding(mesh, _BATCH),
        threads=2,
    )
    used, steps = Counter(), _EPOCHS * len(source) // _BATCH
    for batch in loader.batches(0, steps):
        for tokens, target in zip(np.asarray(batch.tokens), np.asarray(batch.target)):
            if target.any():
                used[int(tokenizer.decode(tokens))] += 1
    bad, problems = {number for number in numbers if number in damages}, []
    good = set(numbers) - bad
    named = (folder / "bad_samples.jsonl").read_text().splitlines()
    named = {_number(line["where"]): line["reason"] for line in map(json.loads, named)}
    if len(invalid) != len(bad):
        problems.append(f"{len(invalid)} counted, {len(bad)} injected")
    if named != {number: KINDS[damages[number]] for number in bad}:
        problems.append(f"named {named}")
    if used.keys() & bad:
        problems.append(f"used {sorted(used.keys() & bad)}")
    # Up to the samples of the batch that was not read.
    rest = _EPOCHS * len(source) - steps * _BATCH
    missing = sum(_EPOCHS - used[number] for number in good)
    if set(used.values()) - {_EPOCHS, _EPOCHS - 1} or missing > rest:
        problems.append(f"{missing} good samples are missing")
    return len(bad), problems


def _number(where: str) -> int:
    return int(re.search(r"(\d+)\.jpg", where)[1])
