"""Datasets by name, opened as in a run with images of 16 pixels."""

from helpers.llava_sets import encoded, photograph
from hive_jax.config import DataConfig
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import make_source, whole_source

# a/0.jpg, b/1.jpg, a/2.jpg, ...
IMAGES = {f"{name}/{i}.jpg": encoded(photograph(i)) for i, name in enumerate("ab" * 3)}


def opened(source: str, **options):
    """A whole dataset; keywords are fields of SourceOptions."""
    return whole_source(source, SourceOptions(16, "hf_bicubic", **options))


def opened_split(source: str, split: str = "train", **changes):
    """A split of a run's dataset; keywords replace fields of its config."""
    data = DataConfig(**{"source": source, "validation_size": 2} | changes)
    return make_source(data, split, image_size=16, with_image=True)
