"""Sets with damaged images of ten kinds: every good sample is used, every bad one named."""

import json

import numpy as np
import pytest
from helpers.damaged_images import DAMAGED
from helpers.llava_sets import encoded, photograph, record, write_set
from PIL import Image

from hive_jax.config import DataConfig, MeshConfig
from hive_jax.data.invalid import InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.data.sources.registry import make_source
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import DataError
from hive_jax.training.sharding import batch_sharding, make_mesh

COUNT, HELD_OUT, BATCH = 208, 8, 8
SIXTEEN = np.full((30, 40), 40_000, np.uint16)
# Ten kinds of damage; of each the content, and the reason it is counted by, if any:
# what can be converted is a good sample.
KINDS = [
    DAMAGED["cut"],
    DAMAGED["empty"],
    DAMAGED["page"],
    (encoded(photograph(1), "PNG"), None),  # called .jpg
    (encoded(photograph(1, mode="CMYK")), None),
    (encoded(photograph(1).quantize(16), "PNG"), None),
    (encoded(Image.fromarray(SIXTEEN), "PNG"), None),
    DAMAGED["gif"],
    DAMAGED["huge"],
    DAMAGED["rotten"],
]


@pytest.mark.parametrize("percent", [0, 1, 5, 20, 50])
def test_counts_are_those_of_the_damage(tmp_path, percent):
    rng = np.random.default_rng(percent)
    records = [record(i) for i in range(COUNT)]
    files = {one["image"]: encoded(photograph(i)) for i, one in enumerate(records)}
    number = round((COUNT - HELD_OUT) * percent / 100)
    train = [i for i in range(COUNT) if i % (COUNT // HELD_OUT)]
    chosen = rng.permutation(train)[:number]
    injected = {}
    for place, index in enumerate(chosen):
        content, reason = KINDS[place % len(KINDS)]
        files[record(index)["image"]] = content
        if reason:
            injected[record(index)["image"]] = reason

    config = DataConfig(
        source=write_set(tmp_path, files, records)["zip"], validation_size=HELD_OUT
    )
    source = make_source(config, "train", image_size=16, with_image=True)
    invalid = InvalidSampleLog("train", len(source), 1.0)
    invalid.keep_in(tmp_path / "bad.jsonl", 0)
    loader = Loader(
        source,
        tokenizer := load_tokenizer("builtin:tabletop"),
        batch_size=BATCH,
        num_tokens=32,
        image_size=16,
        preprocessing="hf_bicubic",
        invalid=invalid,
        sharding=batch_sharding(make_mesh(MeshConfig(data=-1)), BATCH),
        sampler=ShuffledSampler(len(source), seed=0),
        threads=2,
    )
    used = []
    for batch in loader.batches(0, len(source) // BATCH):  # one epoch
        for tokens, target in zip(
            np.asarray(batch.tokens), np.asarray(batch.target), strict=True
        ):
            used += [tokenizer.decode(tokens)] if target.any() else []
    wanted = [
        f"caption number {i}\n" for i in train if record(i)["image"] not in injected
    ]
    assert sorted(used) == sorted(wanted)
    lines = [*map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())]
    named = {line["where"].split(" ")[-1]: line["reason"] for line in lines}
    assert named == injected and len(lines) == len(injected)
    assert sum(invalid.counts.values()) == len(injected)
    if percent > 1:
        invalid._max_fraction = 0.01
        with pytest.raises(DataError, match=rf"{len(injected)} of 200 train samples"):
            invalid.check(200, DataError("..."))
