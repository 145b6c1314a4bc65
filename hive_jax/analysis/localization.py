"""Localization on scenes of one or two toys: attention and gradients at the toy."""

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

_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Localization:
    """Localization of toys, by encoder depth of a connection or by layer.

    Attributes:
      attention: depth -> attention weight of a patch of the toy over that of another
        patch, when its colour is predicted; mean over scenes.
      hit_rate: depth -> share of scenes where that ratio exceeds 1.
      gradient: for each layer, gradient norm of the loss on the material's word at a
        patch of the toy over that at another patch.
      distinguished: depth -> share of toys, in scenes of two that differ in colour and
        shape, with more attention than the other toy when their shape is predicted.
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
      tokenizer: the one of the run.
      count: number of scenes of each.

    Raises:
      ConfigError: the model has no cross-attention.
    """
    size, grid = config.model.encoder.image_size, _grid(config)
    attention, gradients = [], []
    for start in range(0, count, _BATCH):
        indices = range(start, min(start + _BATCH, count))
        scenes = [scene("test", 0, index, toys=1) for index in indices]
        things = [one.things[0] for one in scenes]
        examples = [_captioned_scene(one, size) for one in scenes]
        masks = np.stack([toy_mask(thing, grid) for thing in things])
        words = attention_maps(config, params, tokenizer, examples)
        for one, thing, mask in zip(words, things, masks, strict=True):
            word = one.words.index(thing.colour)
            attention.append(_density(one.weights[:, :, word].mean(axis=1), mask[None]))
        batch = make_batch(examples, tokenizer, TAG_NAMES)
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
    """Share of toys with more attention than the other one, float[connections]."""
    size, grid = config.model.encoder.image_size, _grid(config)
    scenes = (scene("test", 0, index, toys=2) for index in itertools.count())
    differ = (
        one
        for one in scenes
        if one.things[0].colour != one.things[1].colour
        and one.things[0].shape != one.things[1].shape
    )
    won = []
    for start in range(0, count, _BATCH):
        some = [*itertools.islice(differ, min(_BATCH, count - start))]
        examples = [_captioned_scene(one, size) for one in some]
        words = attention_maps(config, params, tokenizer, examples)
        for one, attention in zip(some, words, strict=True):
            masks = [toy_mask(thing, grid) for thing in one.things]
            for thing, (own, other) in zip(
                one.things, (masks, masks[::-1]), strict=True
            ):
                word = attention.words.index(thing.shape)
                weights = attention.weights[:, :, word].mean(axis=1)
                means = [weights[:, mask].mean(axis=1) for mask in (own, other)]
                won.append(means[0] > means[1])
    return np.mean(won, axis=0)


def toy_mask(thing: Thing, grid: int) -> np.ndarray:
    """bool[grid * grid]: patches whose centre is in the toy's disc, or the nearest one."""
    middle = (np.arange(grid) + 0.5) / grid
    across, down = middle[None] - thing.x, middle[:, None] - thing.y
    squared = (across**2 + down**2).reshape(-1)
    return squared <= max(thing.radius**2, squared.min())


def _density(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Ratio of the means inside and outside the mask, [..., P] -> [...]."""
    inside = (values * mask).sum(-1) / mask.sum(-1)
    outside = (values * ~mask).sum(-1) / np.maximum((~mask).sum(-1), 1)
    return inside / np.maximum(outside, 1e-30)


def _captioned_scene(whole: Scene, size: int) -> CaptionedImage:
    """A scene with a caption of all attributes of all toys."""
    nouns = [
        f"a {one.size}|size {one.material}|material {one.colour}|colour {one.shape}|shape"
        for one in whole.things
    ]
    segment = mark(f"there is {' and '.join(nouns)} on the table.")
    return CaptionedImage(
        "localization", render(whole, size), segment.text.strip(), segment.tags
    )


def _grid(config: RunConfig) -> int:
    return config.model.encoder.image_size // config.model.encoder.patch_size


def _mean_by_depth(depths: list[int], values: np.ndarray) -> dict[str, float]:
    """Means over the connections of each depth; a cascade has several of one."""
    return {
        depth: float(
            np.mean([v for d, v in zip(depths, values, strict=True) if d == depth])
        )
        for depth in dict.fromkeys(depths)
    }
