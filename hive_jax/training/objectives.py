"""The model, the parameters and the loss of a training objective."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.models.decoder import head
from hive_jax.models.fusion_kinds import FUSIONS
from hive_jax.models.hive import Hive
from hive_jax.models.placement import ONE_DEVICE
from hive_jax.models.siglip import TwoTowers
from hive_jax.training import sharding
from hive_jax.training.losses import (
    next_token_nll,
    sigmoid_contrastive_loss,
    supervised_nll,
)


def build_model(config: RunConfig, mesh: Mesh | None = None) -> nn.Module:
    """Returns the model that config.objective trains, computing in config.dtype.

    Args:
      config: complete config: both architectures are known.
      mesh: the device mesh; by default one device.
    """
    dtype = compute_dtype(config.dtype)
    placement = sharding.placement(mesh, dtype) if mesh is not None else ONE_DEVICE
    model, execution = config.model, config.execution
    if config.objective == "contrastive":
        return TwoTowers(model.encoder, config.text_tower, dtype, placement, execution)
    # cuDNN's flash attention needs queries and keys sharded alike. Where the tensor
    # axis does not divide the key heads they are replicated, and the queries are not.
    if mesh is not None and model.decoder.num_kv_heads % mesh.shape["tensor"]:
        decoder = dataclasses.replace(execution.decoder, flash=False)
        execution = dataclasses.replace(execution, decoder=decoder)
    return Hive(model, dtype, placement, execution)


def compute_dtype(name: str) -> jnp.dtype:
    """Returns the dtype of a name; "auto" is float32 on CPU, else bfloat16."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def names_under_all_fusions(config: RunConfig, batch: Batch) -> set[str]:
    """Returns the parameter names of the model under every value of model.fusion, so
    that one list of rules can serve all fusions.

    Args:
      config: complete config; without an encoder, only its own fusion counts.
      batch: shapes of a batch.
    """
    names = set()
    for fusion in FUSIONS if config.model.encoder else (config.model.fusion,):
        model = dataclasses.replace(config.model, fusion=fusion)
        other = build_model(dataclasses.replace(config, model=model))
        # The default argument binds the model of this iteration.
        shapes = jax.eval_shape(lambda module=other: init_params(module, batch, 0))
        names |= set(flatten_dict(shapes, sep="/"))
    return names


def normalize_images(images: jax.Array) -> jax.Array:
    """Returns uint8 [0, 255] as float32 [-1, 1], the range that SigLIP expects."""
    # On the device, so that uint8 is transferred to it: a quarter of the bytes.
    return images.astype(jnp.float32) / 127.5 - 1.0


def init_params(model: nn.Module, batch: Batch, seed: int) -> dict:
    """Returns random float32 parameters, a function of the seed alone.

    Args:
      model: from `build_model`.
      batch: shapes of a batch; its size does not matter.
      seed: of the random numbers.
    """
    size, num_tokens = batch.image.shape[1], batch.tokens.shape[1]
    return _init(model, size, num_tokens, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _init(model: nn.Module, image_size: int, num_tokens: int, key: jax.Array) -> dict:
    """Jitted, so that shapes and values of one model are traced once."""
    # One sample: shapes of parameters do not depend on the batch size.
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    tokens = jnp.zeros((1, num_tokens), jnp.int32)
    inputs = (images, tokens)
    if isinstance(model, Hive):
        # The image mask, which two towers do not take.
        inputs += (jnp.ones(tokens.shape, bool),)
    return model.init(key, *inputs)["params"]


def abstract_params(model, batch: Batch, mesh) -> dict:
    """Returns the shapes, dtypes and shardings of the parameters; computes nothing.

    Args:
      model: from `build_model`.
      batch: shapes of a batch.
      mesh: the device mesh.
    """
    shapes = jax.eval_shape(lambda: init_params(model, batch, 0))
    return sharding.sharded_params(mesh, shapes)


def make_loss(model: nn.Module, mesh: Mesh) -> Callable:
    """Returns the loss function (params, batch) -> (sum of losses, weight).

    Both are float32 scalars. Sums rather than means, so that micro-batches with
    different numbers of supervised tokens add up to the loss of the whole batch.

    Args:
      model: from `build_model`.
      mesh: the device mesh.
    """

    def caption(params, batch: Batch):
        hidden, table, softcap = _hidden(model, params, batch)
        loss = supervised_nll(hidden, table, softcap, batch.tokens, batch.target, mesh)
        # Without the first token, which nothing predicts.
        return loss, batch.target[:, 1:].sum().astype(jnp.float32)

    def contrastive(params, batch: Batch):
        images = normalize_images(batch.image)
        towers = model.apply({"params": params}, images, batch.tokens)
        # Weight 1: the loss is a mean already, and of the complete batch: the config
        # refuses accumulation, because the negatives are the other samples of the
        # batch.
        return sigmoid_contrastive_loss(*towers, valid_pairs(batch)), jnp.float32(1.0)

    return caption if isinstance(model, Hive) else contrastive


def valid_pairs(batch: Batch) -> jax.Array:
    """Returns bool[B]: samples with an image and a text; bad samples have neither."""
    return batch.target.any(axis=1) & batch.image_mask.any(axis=1)


def image_features(model: Hive, params: dict, batch: Batch) -> jax.Array | None:
    """Returns the features of the images, [M, B, P, D]; see `Hive.encode`.

    Args:
      model: a Hive.
      params: nested dict of its parameters.
      batch: with images.
    """
    images = normalize_images(batch.image)
    return model.apply({"params": params}, images, method="encode")


def token_losses(
    model: Hive, params: dict, batch: Batch, features: jax.Array | None
) -> jax.Array:
    """Returns the negative log-likelihood of each next token, float32[B, T - 1].

    Args:
      model: a Hive.
      params: nested dict of its parameters.
      batch: tokens int32[B, T] and masks; its images are not read.
      features: of `image_features`.
    """
    inputs = features, batch.tokens, batch.image_mask
    hidden = model.apply({"params": params}, *inputs, method="hidden_states")
    table, softcap = head(model.config.decoder, params["llm"])
    return next_token_nll(hidden, table, softcap, batch.tokens)


def _hidden(model: Hive, params: dict, batch: Batch):
    """Returns hidden states [B, T, E], the output head [V, E] and the softcap."""
    images = normalize_images(batch.image)
    hidden = model.apply({"params": params}, images, batch.tokens, batch.image_mask)
    return hidden, *head(model.config.decoder, params["llm"])
