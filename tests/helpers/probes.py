"""A small probe of a built-in encoder, and its results."""

import json

from hive_jax.config import ProbeConfig
from hive_jax.data.sources.base import SourceOptions

BUILTIN = "builtin:tabletop_siglip"
SMALL = ProbeConfig(
    train="tabletop:classes,take=first:400",
    test="tabletop:classes,split=test,take=first:100",
    epochs=20,
    batch_size=100,
    peak_lr=0.1,
    num_seeds=2,
)
HOW = SourceOptions(64, "hf_bicubic")


def read(folder):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    return result, [json.loads(line) for line in lines]
