"""Localization on scenes of one or two toys: attention and gradients on the toy."""

import dataclasses
import itertools

import numpy as np

from hive_jax.analysis.attention import attention_maps
from hive_jax.analysis.examples import CaptionedImage, make_batch
from hive_jax.analysis.gradients import feature_gradients
from hive_jax.config import RunConfig
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import Scene, Thing, scene
from hive_jax.data.tabletop.templates import TAG_NAMES, mark
from hive_jax.data.tokenizer import Tokenizer

# Scenes a compiled call; the default 200 scenes are four full batches.
_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Localization:
    """Localization of toys, by encoder depth of a connection or by layer.

    Attributes:
      attention: depth -> ratio of the mean attention weight on the toy's patches to that
        on the other patches while its colour is predicted, averaged over scenes; 1 is
        no localization.
      hit_rate: depth -> share of scenes in which this ratio exceeds 1.
      gradient: for each encoder layer, the same ratio for the gradient norm of the loss
        on the word of the material.
      distinguished: depth -> share of toys that get more attention than the other toy
        while their shape is predicted, in scenes of two toys that differ in colour and
        shape; 0.5 is chance.
    """

    attention: dict[int, float]
    hit_rate: dict[int, float]
    gradient: list[float]
    distinguished: dict[int, float]


def measure_localization(
    config: RunConfig, params: dict, tokenizer: Tokenizer, count: int = 200
) -> Localization:
    """Measures attention and gradients on scenes of one toy, and attention on two.

    Args:
      config: config of the run.
      params: nested dict of its parameters.
      tokenizer: tokenizer of the run.
      count: number of scenes with one toy, and of scenes with two.

    Raises:
      ConfigError: the model has no cross-attention.
    """
    size, grid = config.model.encoder.image_size, _grid(config)
    attention, gradients = [], []
    for start in range(0, count, _BATCH):
        indices = range(start, min(start + _BATCH, count))
        # Of the test split, which no training has seen.
        scenes = [scene("test", 0, index, toys=1) for index in indices]
        things = [one.things[0] for one in scenes]
        examples = [_captioned_scene(one, size) for one in scenes]
        masks = np.stack([toy_mask(thing, grid) for thing in things])
        words = attention_maps(config, params, tokenizer, examples)
        for one, thing, mask in zip(words, things, masks, strict=True):
            # [M, P] after the mean over heads.
            word = one.words.index(thing.colour)
            attention.append(_density(one.weights[:, :, word].mean(axis=1), mask[None]))
        batch = make_batch(examples, tokenizer, TAG_NAMES)
        # Only the word of the material is supervised, so that the gradient is that of
        # its loss alone.
        target = batch.target & (batch.tag == TAG_NAMES.index("material"))
        norms = feature_gradients(config, params, batch.replace(target=target))
        gradients.append(_density(norms, masks[None]))
    depths = [depth for depth, _ in config.model.resolved_connections()]
    ratios = np.stack(attention, axis=1)  # [connections, scenes]
    return Localization(
        _mean_by_depth(depths, ratios.mean(axis=1)),
        _mean_by_depth(depths, (ratios > 1).mean(axis=1)),
        np.concatenate(gradients, axis=1).mean(axis=1).tolist(),
        _mean_by_depth(depths, _distinguished(config, params, tokenizer, count)),
    )


def _distinguished(
    config: RunConfig, params: dict, tokenizer: Tokenizer, count: int
) -> np.ndarray:
    """Computes `Localization.distinguished` for each connection, float[connections]."""
    size, grid = config.model.encoder.image_size, _grid(config)
    scenes = (scene("test", 0, index, toys=2) for index in itertools.count())
    # With equal colours or shapes, no word would be of one toy alone.
    differ = (
        one
        for one in scenes
        if one.things[0].colour != one.things[1].colour
        and one.things[0].shape != one.things[1].shape
    )
    is_larger = []
    for start in range(0, count, _BATCH):
        batch_scenes = [*itertools.islice(differ, min(_BATCH, count - start))]
        examples = [_captioned_scene(one, size) for one in batch_scenes]
        words = attention_maps(config, params, tokenizer, examples)
        for one, attention in zip(batch_scenes, words, strict=True):
            masks = [toy_mask(thing, grid) for thing in one.things]
            # Each toy against the other: masks in both orders.
            for thing, (own, other) in zip(
                one.things, (masks, masks[::-1]), strict=True
            ):
                word = attention.words.index(thing.shape)
                weights = attention.weights[:, :, word].mean(axis=1)
                means = [weights[:, mask].mean(axis=1) for mask in (own, other)]
                is_larger.append(means[0] > means[1])
    return np.mean(is_larger, axis=0)


def toy_mask(thing: Thing, grid: int) -> np.ndarray:
    """Marks the patches whose centre lies in a toy's disc, or else the nearest patch.

    Args:
      thing: toy, with position and radius as fractions of the image side.
      grid: number of patches along a side.

    Returns:
      bool[grid * grid], with at least one patch set.
    """
    # Centres of patches, as fractions of the side like the position of a toy.
    middle = (np.arange(grid) + 0.5) / grid
    across, down = middle[None] - thing.x, middle[:, None] - thing.y
    squared = (across**2 + down**2).reshape(-1)
    # A toy that is smaller than a patch may contain no centre.
    return squared <= max(thing.radius**2, squared.min())


def _density(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the ratio of the means inside and outside the mask, [..., P] -> [...]."""
    inside = (values * mask).sum(-1) / mask.sum(-1)
    outside = (values * ~mask).sum(-1) / np.maximum((~mask).sum(-1), 1)
    # Means and not sums: toys cover fewer patches than the rest of the scene.
    return inside / np.maximum(outside, 1e-30)


def _captioned_scene(described: Scene, size: int) -> CaptionedImage:
    """Renders a scene with a caption that names all attributes of all toys."""
    # "word|tag": `mark` removes the tags and returns their spans.
    nouns = [
        f"a {one.size}|size {one.material}|material {one.colour}|colour {one.shape}|shape"
        for one in described.things
    ]
    segment = mark(f"there is {' and '.join(nouns)} on the table.")
    return CaptionedImage(
        "localization", render(described, size), segment.text.strip(), segment.tags
    )


def _grid(config: RunConfig) -> int:
    return config.model.encoder.image_size // config.model.encoder.patch_size


def _mean_by_depth(depths: list[int], values: np.ndarray) -> dict[str, float]:
    """Averages over the connections of each depth; a cascade reads one several times."""
    return {
        depth: float(
            np.mean([v for d, v in zip(depths, values, strict=True) if d == depth])
        )
        for depth in dict.fromkeys(depths)
    }
