"""Validation of config values, and of the models' dataclasses.

The models import nothing else of the package, not even its errors, so their configs
are validated here. Every other dataclass validates itself; see schema.py.
"""

import dataclasses
from collections.abc import Iterable

from hive_jax.errors import ConfigError
from hive_jax.models.config import (
    ACTIVATIONS,
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)
from hive_jax.models.execution import REMAT_POLICIES, ModelExecution
from hive_jax.models.fusion_kinds import FUSIONS

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


def require_name(key: str, value: str) -> None:
    """Raises ConfigError unless the value can be the name of a folder.

    Args:
      key: dotted key.
      value: value of the key.
    """
    require(
        value.isprintable()
        and not value.startswith(".")
        and not {"/", "\\"} & {*value}
        and 0 < len(value.encode()) <= 100,
        key,
        value,
        "a name of 1 to 100 bytes, without / and not starting with a dot",
    )


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
    """Raises ConfigError for sizes of an image tower that do not fit each other."""
    key = "model.encoder"
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
    """Raises ConfigError for sizes of a text tower that do not fit each other.

    Args:
      tower: the text tower.
      encoder: the image tower whose embeddings must have the same width; None if it
        is still unknown, because it is that of the initial weights.
    """
    key = "text_tower"
    require_multiple(f"{key}.width", tower.width, f"{key}.num_heads", tower.num_heads)
    if encoder:
        require(
            tower.out_dim == encoder.width,
            f"{key}.out_dim",
            tower.out_dim,
            f"model.encoder.width = {encoder.width}",
        )


def validate_decoder(decoder: DecoderConfig) -> None:
    """Raises ConfigError for sizes of a decoder that do not fit each other."""
    key = "model.decoder"
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


def validate_fusion(model: HiveConfig) -> None:
    """Raises ConfigError for an unknown fusion, or options that it does not have."""
    require_one_of(FUSIONS, "model.fusion", model.fusion)
    projectors = ("", *model.fusion_kind.projectors)
    require_one_of(projectors, "model.projector", model.projector)
    require_one_of(("shared", "own"), "model.image_kv", model.image_kv)


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
