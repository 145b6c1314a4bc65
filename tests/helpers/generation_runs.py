"""Tiny models with random weights that generate text; by fusion."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.config import DataConfig, RunConfig
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
from hive_jax.training import objectives

TOKENIZER = load_tokenizer("builtin:tabletop")


@functools.cache
def run(fusion, **changes) -> RunConfig:
    decoder = DecoderConfig(512, 32, 4, 48, 4, 2, 8, qk_norm=True, post_norms=True)
    decoder = dataclasses.replace(decoder, **changes)
    encoder = SiglipConfig(16, 4, 24, 2, patch_size=8, image_size=24)
    model = HiveConfig(encoder, decoder, fusion, num_connections=2)
    data = DataConfig(tokenizer="builtin:tabletop", num_tokens=16)
    return RunConfig(model=model, data=data, dtype="float32")


@functools.cache
def params(fusion, **changes):
    """All leaves random, and the embeddings so that tokens do not repeat themselves."""
    rng = np.random.default_rng(0)
    model = objectives.build_model(run(fusion, **changes))
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, 24, 24, 3)),
        jnp.zeros((1, 5), jnp.int32),
        jnp.ones((1, 5), bool),
    )["params"]
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype), shapes
    )
    # Norms that multiply by the scale alone need scales around 1.
    shift = 1.0 - run(fusion, **changes).model.decoder.norm_offset
    params["llm"] = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + shift * (path[-1].key == "scale"), params["llm"]
    )
    table = rng.normal(0, 0.05, shapes["llm"]["embedder"]["input_embedding"].shape)
    params["llm"]["embedder"]["input_embedding"] = jnp.asarray(table, jnp.float32)
    return params
