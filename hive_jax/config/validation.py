"""Validation of config values, and of the models' dataclasses.

The models import nothing else of the package, not even its errors, so their configs
are validated here. Every other dataclass validates itself; see schema.py.
"""

import dataclasses
from collections.abc import Iterable

from hive_jax.errors import ConfigError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.layer_stack import REMAT_POLICIES, ModelExecution
from hive_jax.models.layers import ACTIVATIONS
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig

DTYPES = ("auto", "float32", "bfloat16")


def require(holds: bool, key: str, value, expected: str) -> None:
    """Raises ConfigError "config.KEY is VALUE; expected EXPECTED" unless `holds`.

    Args:
      holds: the condition.
      key: dotted key, e.g. "optimizer.peak_lr".
      value: value of the key.
      expected: description of valid values.
    """
    if not holds:
        raise ConfigError(f"config.{key} is {value!r}; expected {expected}")


def require_at_least(minimum: float, key: str, value: float) -> None:
    """Raises ConfigError unless value >= minimum.

    Args:
      minimum: smallest valid value.
      key: dotted key.
      value: value of the key.
    """
    require(value >= minimum, key, value, f"{minimum} or more")


def require_one_of(known: Iterable, key: str, value) -> None:
    """Raises ConfigError unless the value is a known one.

    Args:
      known: valid values.
      key: dotted key.
      value: value of the key.
    """
    require(value in known, key, value, f"one of {tuple(known)}")


def require_multiple(key: str, value: int, divisor_key: str, divisor: int) -> None:
    """Raises ConfigError unless the value is a multiple of another key's.

    Args:
      key: dotted key.
      value: value of the key.
      divisor_key: dotted key of the divisor.
      divisor: its value.
    """
    expected = f"a multiple of {divisor_key} = {divisor}"
    require(value % divisor == 0, key, value, expected)


def validate_execution(execution: ModelExecution) -> None:
    """Raises ConfigError for an unknown remat policy."""
    for field in dataclasses.fields(execution):
        remat = getattr(execution, field.name).remat
        require_one_of(REMAT_POLICIES, f"execution.{field.name}.remat", remat)


def validate_encoder(encoder: SiglipConfig) -> None:
    """Raises ConfigError for impossible sizes of an image tower."""
    key = "model.encoder"
    _validate_sizes(encoder, key)
    require_multiple(
        f"{key}.width", encoder.width, f"{key}.num_heads", encoder.num_heads
    )
    require(
        encoder.num_patches > 0,
        f"{key}.image_size",
        encoder.image_size,
        f"patch_size = {encoder.patch_size} or more",
    )


def validate_text_tower(tower: TextTowerConfig, encoder: SiglipConfig | None) -> None:
    """Raises ConfigError for impossible sizes of a text tower.

    Args:
      tower: the text tower.
      encoder: the image tower whose embeddings must have the same width; None if it
        is still unknown, because it is that of the initial weights.
    """
    key = "text_tower"
    _validate_sizes(tower, key)
    require_multiple(f"{key}.width", tower.width, f"{key}.num_heads", tower.num_heads)
    if encoder:
        require(
            tower.out_dim == encoder.width,
            f"{key}.out_dim",
            tower.out_dim,
            f"model.encoder.width = {encoder.width}",
        )


def validate_decoder(decoder: DecoderConfig) -> None:
    """Raises ConfigError for impossible sizes of a decoder."""
    key = "model.decoder"
    _validate_sizes(decoder, key)
    require_one_of(ACTIVATIONS, f"{key}.activation", decoder.activation)
    require_multiple(
        f"{key}.num_heads",
        decoder.num_heads,
        f"{key}.num_kv_heads",
        decoder.num_kv_heads,
    )
    require(
        decoder.head_dim % 2 == 0, f"{key}.head_dim", decoder.head_dim, "an even number"
    )
    require(
        decoder.rope_factor > 0,
        f"{key}.rope_factor",
        decoder.rope_factor,
        "more than 0",
    )


def validate_connections(model: HiveConfig) -> None:
    """Raises ConfigError for connections to layers that do not exist.

    Does nothing while an architecture is None, to be taken from the initial weights;
    the resolved config is validated again.
    """
    if model.encoder is None or model.decoder is None:
        return
    try:
        model.resolved_connections()
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None


def _validate_sizes(tower, key: str) -> None:
    """Raises ConfigError for numbers below 1; floats and local_layers may be 0, which
    turns the feature off."""
    for field in dataclasses.fields(tower):
        if field.type is int or field.type is float:
            optional = field.type is float or field.name == "local_layers"
            value = getattr(tower, field.name)
            require_at_least(0 if optional else 1, f"{key}.{field.name}", value)
