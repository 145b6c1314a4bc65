"""A tiny Hive of each fusion with random parameters, and its inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
from hive_jax.models.hive import Hive

# 9 patches; block 3 of the encoder is connected to nothing.
TINY = HiveConfig(
    SiglipConfig(16, 3, 24, 2, patch_size=8, image_size=24, map_head=False),
    DecoderConfig(31, 24, 3, 32, 4, 2, 8, post_norms=True, qk_norm=True),
    connections=((1, 1), (2, 3)),
)
WITH_IMAGES = ("hive", "cascaded", "joint", "self_attention")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, 24, 24, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 31, (3, 7))
# The image comes first, after three tokens, not at all.
IMAGE_MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0] * 7], bool)


@functools.cache
def model(fusion, **changes):
    return Hive(dataclasses.replace(TINY, fusion=fusion, **changes))


@functools.cache
def random_params(fusion):
    """All leaves random: norms, biases and gates matter."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        model(fusion).init, jax.random.key(0), IMAGES, TOKENS, IMAGE_MASK
    )
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype),
        shapes["params"],
    )


@functools.cache
def compiled(fusion):
    return jax.jit(model(fusion).apply)


def run(fusion, images=IMAGES, tokens=TOKENS, image_mask=IMAGE_MASK, params=None):
    params = random_params(fusion) if params is None else params
    return np.asarray(compiled(fusion)({"params": params}, images, tokens, image_mask))


def with_gates(params, gates):
    """The same parameters with the gates of the two connections set."""
    gate = jnp.asarray(gates, jnp.float32)[:, None]
    cross_attention = params["fusion"]["cross_attention"] | {"gate": gate}
    fusion = params["fusion"] | {"cross_attention": cross_attention}
    return params | {"fusion": fusion}
