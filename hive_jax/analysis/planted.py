"""Scenes of one toy or two: does what is said of a toy come from where it is?"""

import dataclasses
import itertools

import numpy as np

from hive_jax.analysis.attention import attention_maps
from hive_jax.analysis.gradients import feature_gradients
from hive_jax.analysis.shown import Shown, batch_of
from hive_jax.config import RunConfig
from hive_jax.data.batch import KINDS
from hive_jax.data.tabletop.draw import draw
from hive_jax.data.tabletop.scene import Scene, Thing, scene
from hive_jax.data.tabletop.words import mark
from hive_jax.data.tokenizer import Tokenizer

_AT_ONCE = 50


@dataclasses.dataclass(frozen=True)
class Planted:
    """What was found over all scenes, for each connection or layer.

    Attributes:
      attention: depth read -> times that a patch of the toy is looked at as much as
        another, by the mean over scenes, while its colour is written.
      found: depth read -> share of the scenes in which it is looked at more.
      gradient: for each layer, times that the gradient of the loss on the material's
        word is as large at a patch of the toy as at another.
      apart: depth read -> share of the toys, in scenes of two that differ in colour and
        shape, that are looked at more than the other one while their shape is written,
        which is after their colour.
    """

    attention: dict[int, float]
    found: dict[int, float]
    gradient: list[float]
    apart: dict[int, float]


def planted_check(
    config: RunConfig, params: dict, tokenizer: Tokenizer, count: int = 200
) -> Planted:
    """Measures attention and gradients on scenes of one toy, and attention on as many of
    two.

    Raises ConfigError: the model has no cross-attention.
    """
    size, grid = config.model.encoder.image_size, _grid(config)
    looked, sizes = [], []
    for start in range(0, count, _AT_ONCE):
        indices = range(start, min(start + _AT_ONCE, count))
        scenes = [scene("test", 0, index, toys=1) for index in indices]
        things = [one.things[0] for one in scenes]
        shown = [_described(one, size) for one in scenes]
        masks = np.stack([on_the_toy(thing, grid) for thing in things])
        words = attention_maps(config, params, tokenizer, shown)
        for one, thing, mask in zip(words, things, masks, strict=True):
            place = one.words.index(thing.colour)
            looked.append(
                _density(one.attention_weights[:, :, place].mean(axis=1), mask[None])
            )
        batch = batch_of(shown, tokenizer)
        target = batch.target & (batch.kind == KINDS.index("material"))
        found = feature_gradients(config, params, batch.replace(target=target))
        sizes.append(_density(found, masks[None]))
    depths = [depth for depth, _ in config.model.resolved_connections()]
    ratios = np.stack(looked, axis=1)  # [connections, scenes]
    return Planted(
        _by_depth(depths, ratios.mean(axis=1)),
        _by_depth(depths, (ratios > 1).mean(axis=1)),
        np.concatenate(sizes, axis=1).mean(axis=1).tolist(),
        _by_depth(depths, _told_apart(config, params, tokenizer, count)),
    )


def _told_apart(
    config: RunConfig, params: dict, tokenizer: Tokenizer, count: int
) -> np.ndarray:
    """Share of the toys that are told from the other one, float[connections]."""
    size, grid = config.model.encoder.image_size, _grid(config)
    scenes = (scene("test", 0, index, toys=2) for index in itertools.count())
    differ = (
        one
        for one in scenes
        if one.things[0].colour != one.things[1].colour
        and one.things[0].shape != one.things[1].shape
    )
    won = []
    for start in range(0, count, _AT_ONCE):
        some = [*itertools.islice(differ, min(_AT_ONCE, count - start))]
        shown = [_described(one, size) for one in some]
        words = attention_maps(config, params, tokenizer, shown)
        for one, found in zip(some, words, strict=True):
            masks = [on_the_toy(thing, grid) for thing in one.things]
            for thing, (own, other) in zip(
                one.things, (masks, masks[::-1]), strict=True
            ):
                place = found.words.index(thing.shape)
                shares = found.attention_weights[:, :, place].mean(axis=1)
                means = [shares[:, mask].mean(axis=1) for mask in (own, other)]
                won.append(means[0] > means[1])
    return np.mean(won, axis=0)


def on_the_toy(thing: Thing, grid: int) -> np.ndarray:
    """bool[grid * grid]: patches whose middle is within the toy's disc; of large patches
    the nearest one."""
    middle = (np.arange(grid) + 0.5) / grid
    across, down = middle[None] - thing.x, middle[:, None] - thing.y
    squared = (across**2 + down**2).reshape(-1)
    return squared <= max(thing.radius**2, squared.min())


def _density(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean over patches in the mask by that over the others, [..., P] -> [...]."""
    inside = (values * mask).sum(-1) / mask.sum(-1)
    outside = (values * ~mask).sum(-1) / np.maximum((~mask).sum(-1), 1)
    return inside / np.maximum(outside, 1e-30)


def _described(whole: Scene, size: int) -> Shown:
    """All toys with all their attributes, in the order in which they are kept."""
    nouns = [
        f"a {one.size}|size {one.material}|material {one.colour}|colour {one.shape}|shape"
        for one in whole.things
    ]
    segment = mark(f"there is {' and '.join(nouns)} on the table.")
    return Shown("planted", draw(whole, size), segment.text.strip(), segment.kinds)


def _grid(config: RunConfig) -> int:
    return config.model.encoder.image_size // config.model.encoder.patch_size


def _by_depth(depths: list[int], values: np.ndarray) -> dict[str, float]:
    """Of connections that read one depth (a cascade), the mean."""
    return {
        depth: float(
            np.mean([v for d, v in zip(depths, values, strict=True) if d == depth])
        )
        for depth in dict.fromkeys(depths)
    }
