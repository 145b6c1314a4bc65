"""Names and shapes of our parameters."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from hive_jax.errors import CheckpointError
from hive_jax.models.gemma import Gemma, GemmaConfig
from hive_jax.models.hive import Hive, HiveConfig
from hive_jax.models.siglip import SiglipConfig, SiglipEncoder, TwoTowers
from hive_jax.models.stack import SCANNED


@functools.cache
def param_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters; nothing is computed.

    Args:
      config: SiglipConfig, GemmaConfig, (SiglipConfig, TextTowerConfig) or HiveConfig.
    """
    model, inputs = _model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}


def _model(config):
    """The module, and inputs of the right shapes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    if isinstance(config, GemmaConfig):
        return Gemma(config, execution=SCANNED.decoder), (tokens,)
    if isinstance(config, SiglipConfig):
        return SiglipEncoder(config, execution=SCANNED.encoder), (_image(config),)
    if isinstance(config, HiveConfig):
        inputs = (_image(config.encoder), tokens, tokens == 0)
        return Hive(config, execution=SCANNED), inputs
    image, text = config
    tokens = jnp.zeros((1, text.num_tokens), jnp.int32)
    return TwoTowers(image, text, execution=SCANNED), (_image(image), tokens)


def checked_shapes(config, source: str) -> dict[str, tuple[int, ...]]:
    """`param_shapes`, or CheckpointError if no model has this configuration."""
    towers = config if isinstance(config, tuple) else (config,)
    if isinstance(config, HiveConfig):
        towers = (config.encoder, config.decoder)
    for tower in towers:
        _require_possible(tower, source)
    try:
        return param_shapes(config)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: no model is {config}: {error}") from None


_MAY_BE_ZERO = ("local_layers", "query_scale", "attention_softcap", "final_softcap")
_LIMITS = {"vocab_size": 10_000_000, "window": 10_000_000}


def _require_possible(tower, source: str) -> None:
    """Raises CheckpointError for a number that no model can have."""
    for field in dataclasses.fields(tower):
        value = getattr(tower, field.name)
        limit = _LIMITS.get(field.name, 100_000 if field.type is int else math.inf)
        at_least = 0 if field.name in _MAY_BE_ZERO else 1e-9
        is_number = isinstance(value, int | field.type) and value is not True
        if field.type in (int, float) and not (is_number and at_least <= value < limit):
            raise CheckpointError(f"{source}: {field.name} is {value!r}")


def _image(config: SiglipConfig) -> jax.ShapeDtypeStruct:
    shape = (1, config.image_size, config.image_size, 3)
    return jax.ShapeDtypeStruct(shape, jnp.float32)
