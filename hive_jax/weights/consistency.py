"""Checks of a configuration: its numbers, and their agreement with the tensors.

A wrong number in a configuration makes hundreds of tensors misfit; here the number itself
is named.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hive_jax.config.bounds import BOUNDS, describe_bounds
from hive_jax.errors import CheckpointError
from hive_jax.models.config import (
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)
from hive_jax.weights.mapping import param_shapes
from hive_jax.weights.safetensors import Tensor


class Size(NamedTuple):
    """A size that a configuration states.

    Attributes:
      keys: keys of config.json that state it.
      value: the number; of layers if `axis` is None.
      tensor: name of a tensor with this size; the prefix of the layers for their number.
      axis: axis of the tensor; None for the number of layers.
    """

    keys: str
    value: int
    tensor: str
    axis: int | None


def image_tower_sizes(config: SiglipConfig, prefix: str) -> list[Size]:
    """Returns the sizes of an image tower.

    Args:
      config: architecture.
      prefix: prefix of the tensor names.
    """
    patches, layers = f"{prefix}embeddings.patch_embedding.weight", f"{prefix}encoder."
    return [
        Size("hidden_size", config.width, patches, 0),
        Size("patch_size", config.patch_size, patches, 2),
        Size(
            f"(image_size // patch_size) ** 2, of {config.image_size} and "
            f"{config.patch_size},",
            config.num_patches,
            f"{prefix}embeddings.position_embedding.weight",
            0,
        ),
        *_layer_sizes(config, layers),
    ]


def text_tower_sizes(config: TextTowerConfig, prefix: str) -> list[Size]:
    """Returns the sizes of a text tower; arguments as for `image_tower_sizes`."""
    tokens = f"{prefix}embeddings.token_embedding.weight"
    positions = f"{prefix}embeddings.position_embedding.weight"
    return [
        Size("vocab_size", config.vocab_size, tokens, 0),
        Size("hidden_size", config.width, tokens, 1),
        Size("max_position_embeddings", config.num_tokens, positions, 0),
        Size("projection_size", config.out_dim, f"{prefix}head.weight", 0),
        *_layer_sizes(config, f"{prefix}encoder."),
    ]


def _layer_sizes(config: SiglipConfig | TextTowerConfig, prefix: str) -> list[Size]:
    mlp = f"{prefix}layers.0.mlp.fc1.weight"
    return [
        Size("intermediate_size", config.mlp_dim, mlp, 0),
        Size("num_hidden_layers", config.depth, f"{prefix}layers.", None),
    ]


def decoder_sizes(config: DecoderConfig, prefix: str) -> list[Size]:
    """Returns the sizes of a decoder; arguments as for `image_tower_sizes`."""
    table, layer = f"{prefix}embed_tokens.weight", f"{prefix}layers.0."
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    attention = f"{layer}self_attn."
    return [
        Size("vocab_size", config.vocab_size, table, 0),
        Size("hidden_size", config.width, table, 1),
        Size("intermediate_size", config.mlp_dim, f"{layer}mlp.gate_proj.weight", 0),
        Size("num_attention_heads * head_dim", queries, f"{attention}q_proj.weight", 0),
        Size("num_key_value_heads * head_dim", keys, f"{attention}k_proj.weight", 0),
        Size("num_hidden_layers", config.depth, f"{prefix}layers.", None),
    ]


def require_same_sizes(
    sizes: Iterable[Size], tensors: Mapping[str, Tensor], source: str
) -> None:
    """Compares a configuration with the tensors that exist.

    Args:
      sizes: sizes that the configuration states.
      tensors: tensors of the files by name.
      source: path of the model, for messages.

    Raises:
      CheckpointError: lists the keys that contradict the tensors.
    """
    lines = []
    for size in sizes:
        if size.axis is None:
            layer = re.compile(re.escape(size.tensor) + r"(\d+)\.")
            matches = map(layer.match, tensors)
            count = len({match[1] for match in matches if match})
            if count not in (0, size.value):
                lines.append(
                    f"{size.keys} is {size.value}; there are {count} layers "
                    f"{size.tensor}*"
                )
        elif tensor := tensors.get(size.tensor):
            actual = tensor.shape[size.axis] if size.axis < len(tensor.shape) else None
            if actual != size.value:
                lines.append(
                    f"{size.keys} is {size.value}; {size.tensor} is "
                    f"{list(tensor.shape)}, with {actual} on axis {size.axis}"
                )
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{source}: config.json contradicts the tensors, nothing was loaded:\n  "
            f"{listed}\nCorrect these keys, or use the config.json of these weights."
        )


def require_agreement(
    outer: Mapping, inner: Mapping, keys: Iterable[str], source: str
) -> None:
    """Compares keys at the top of a config.json with those of a component in it.

    Args:
      outer: the top level.
      inner: configuration of the component, complete.
      keys: keys that mean the same in both.
      source: path of the model, for messages.

    Raises:
      CheckpointError: lists the keys with two values.
    """
    lines = [
        f"{key} is {outer[key]!r} at the top, and {inner[key]!r} in the component's own "
        "configuration"
        for key in keys
        if key in outer and outer[key] != inner[key]
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{source}: config.json contradicts itself:\n  {listed}\nRemove the keys at "
            "the top, or correct the component's."
        )


def checked_shapes(config, source: str) -> dict[str, tuple[int, ...]]:
    """Returns `param_shapes` of a configuration that was read from files.

    Args:
      config: what `param_shapes` takes.
      source: path of the configuration, for messages.

    Raises:
      CheckpointError: no model can have this configuration.
    """
    towers = config if isinstance(config, tuple) else (config,)
    if isinstance(config, HiveConfig):
        towers = (config.encoder, config.decoder)
    for tower in towers:
        _require_in_bounds(tower, source)
    try:
        return param_shapes(config)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no model has the configuration {config}: {error}"
        ) from None


def _require_in_bounds(tower, source: str) -> None:
    """Raises CheckpointError for a number that no model can have."""
    bounds = BOUNDS[type(tower).__name__]
    for field in dataclasses.fields(tower):
        if field.type not in (int, float):
            continue
        value, (low, high) = getattr(tower, field.name), bounds[field.name]
        is_number = isinstance(value, int | field.type) and value is not True
        if not (is_number and low <= value <= high):
            kind = "a whole number" if field.type is int else "a number"
            raise CheckpointError(
                f"{source}: {field.name} is {value!r}; expected {kind} from "
                f"{describe_bounds((low, high))}"
            )
