"""What is trained: the model of an objective, its parameters, its loss."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from hive_jax.config import RunConfig
from hive_jax.data.types import Batch
from hive_jax.models.decoder import head
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.hive import Hive
from hive_jax.models.layers import ONE_DEVICE
from hive_jax.models.siglip import TwoTowers
from hive_jax.training import sharding
from hive_jax.training.losses import (
    next_token_nll,
    sigmoid_contrastive_loss,
    supervised_nll,
)


def build_model(config: RunConfig, mesh: Mesh | None = None) -> nn.Module:
    """The model that config.objective trains, computing in config.dtype on `mesh`, by
    default on one device."""
    dtype = compute_dtype(config.dtype)
    place = sharding.placement(mesh, dtype) if mesh is not None else ONE_DEVICE
    model, execution = config.model, config.execution
    if config.objective == "contrastive":
        return TwoTowers(model.encoder, config.text_tower, dtype, place, execution)
    # cuDNN takes queries and keys that are split alike, and nothing else.
    if mesh is not None and model.decoder.num_kv_heads % mesh.shape["tensor"]:
        decoder = dataclasses.replace(execution.decoder, flash=False)
        execution = dataclasses.replace(execution, decoder=decoder)
    return Hive(model, dtype, place, execution)


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of a config; "auto" is the platform's own."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def names_under_all_fusions(config: RunConfig, batch: Batch) -> set[str]:
    """Parameter names of the model under every value of config.model.fusion; without
    an encoder, under its own."""
    names = set()
    for fusion in FUSIONS if config.model.encoder else (config.model.fusion,):
        model = dataclasses.replace(config.model, fusion=fusion)
        other = build_model(dataclasses.replace(config, model=model))
        shapes = jax.eval_shape(lambda module=other: init_params(module, batch, 0))
        names |= set(flatten_dict(shapes, sep="/"))
    return names


def normalize_images(images: jax.Array) -> jax.Array:
    """uint8 [0, 255] -> float32 [-1, 1], as SigLIP was trained."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def init_params(model: nn.Module, batch: Batch, seed: int) -> dict:
    """Random parameters, a function of the seed. `batch` gives shapes only."""
    images = jnp.zeros((1, *batch.image.shape[1:]), jnp.float32)
    tokens = jnp.zeros((1, batch.tokens.shape[1]), jnp.int32)
    inputs = (images, tokens)
    if isinstance(model, Hive):
        inputs += (jnp.ones(tokens.shape, bool),)
    return model.init(jax.random.key(seed), *inputs)["params"]


def abstract_params(model, batch: Batch, mesh) -> dict:
    """The parameters' shapes, dtypes and shardings; nothing is computed."""
    shapes = jax.eval_shape(lambda: init_params(model, batch, 0))
    return sharding.sharded_params(mesh, shapes)


def make_loss(model: nn.Module, mesh: Mesh) -> Callable:
    """(params, batch) -> (sum of losses, weight they are to be divided by)."""

    def caption(params, batch: Batch):
        hidden, table, softcap = _hidden(model, params, batch)
        loss = supervised_nll(hidden, table, softcap, batch.tokens, batch.target, mesh)
        return loss, batch.target[:, 1:].sum().astype(jnp.float32)

    def contrastive(params, batch: Batch):
        images = normalize_images(batch.image)
        towers = model.apply({"params": params}, images, batch.tokens)
        return sigmoid_contrastive_loss(*towers, is_pair(batch)), jnp.float32(1.0)

    return caption if isinstance(model, Hive) else contrastive


def is_pair(batch: Batch) -> jax.Array:
    """bool[B]: samples with an image and a text; bad ones have neither."""
    return batch.target.any(axis=1) & batch.image_mask.any(axis=1)


def token_losses(model: Hive, params: dict, batch: Batch) -> jax.Array:
    """Negative log-likelihood float32[B, T - 1] of each token after the first."""
    hidden, table, softcap = _hidden(model, params, batch)
    return next_token_nll(hidden, table, softcap, batch.tokens)


def _hidden(model: Hive, params: dict, batch: Batch):
    """Hidden states [B, T, E], and what turns them into logits."""
    images = normalize_images(batch.image)
    hidden = model.apply({"params": params}, images, batch.tokens, batch.image_mask)
    return hidden, *head(model.config.decoder, params["llm"])
