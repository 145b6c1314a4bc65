"""SigLIP in transformers' format: tables of its configuration and of its tensors.

Covers SigLIP and SigLIP 2 of fixed resolution (`SiglipModel`, `SiglipVisionModel`).
"""

import dataclasses
from collections.abc import Mapping

from hive_jax.errors import CheckpointError
from hive_jax.models.config import SiglipConfig, TextTowerConfig
from hive_jax.weights.mapping import Row

# Fields of SiglipConfig and TextTowerConfig -> keys of transformers' configurations.
_FIELDS = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
}
_VISION_FIELDS = _FIELDS | {
    "patch_size": "patch_size",
    "image_size": "image_size",
    "map_head": "vision_use_head",
}
_TEXT_FIELDS = _FIELDS | {
    "vocab_size": "vocab_size",
    "num_tokens": "max_position_embeddings",
    "out_dim": "projection_size",
}
# Values that the towers in hive_jax/models/siglip.py are built for.
_FIXED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def vision_config_from_hf(hf: Mapping, source: str) -> SiglipConfig:
    """Converts a SiglipVisionConfig.

    Args:
      hf: the configuration, complete with transformers' defaults.
      source: path of the configuration, for messages.

    Raises:
      CheckpointError: `SiglipEncoder` does not compute this tower.
    """
    require_values(hf, _FIXED | {"num_channels": 3}, source)
    config = {name: hf[key] for name, key in _VISION_FIELDS.items()}
    # transformers allows pairs (height, width); the tower is square.
    for name in ("patch_size", "image_size"):
        if not isinstance(config[name], int):
            raise CheckpointError(
                f"{source}: {name} is {config[name]!r}; expected one number, the side of "
                "a square"
            )
        if config[name] < 1:
            raise CheckpointError(
                f"{source}: {name} is {config[name]}; expected 1 or more"
            )
    _require_even_heads(hf, source)
    return SiglipConfig(**config)


def text_config_from_hf(hf: Mapping, source: str) -> TextTowerConfig:
    """Converts a SiglipTextConfig.

    Args:
      hf, source: as for `vision_config_from_hf`.

    Raises:
      CheckpointError: `TextTower` does not compute this tower.
    """
    require_values(hf, _FIXED, source)
    _require_even_heads(hf, source)
    return TextTowerConfig(**{name: hf[key] for name, key in _TEXT_FIELDS.items()})


def _require_even_heads(hf: Mapping, source: str) -> None:
    """Raises CheckpointError if the heads do not divide the width between them."""
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    if heads > 0 and width % heads:
        raise CheckpointError(
            f"{source}: hidden_size is {width} and num_attention_heads {heads}; expected "
            "a width that the heads divide without remainder"
        )


def vision_config_to_hf(config: SiglipConfig) -> dict:
    """Inverse of `vision_config_from_hf`: the JSON of a SiglipVisionConfig."""
    hf = {key: getattr(config, name) for name, key in _VISION_FIELDS.items()}
    return {"model_type": "siglip_vision_model", **hf, "num_channels": 3} | _FIXED


def text_config_to_hf(config: TextTowerConfig) -> dict:
    """Inverse of `text_config_from_hf`: the JSON of a SiglipTextConfig."""
    hf = {key: getattr(config, name) for name, key in _TEXT_FIELDS.items()}
    return {"model_type": "siglip_text_model", **hf} | _FIXED


def require_values(hf: Mapping, fixed: Mapping, source: str) -> None:
    """Checks values of a configuration.

    Args:
      hf: the configuration.
      fixed: key -> required value.
      source: path of the configuration, for messages.

    Raises:
      CheckpointError: lists the values that differ.
    """
    wrong = [
        f"{key} is {hf.get(key)!r}; expected {value!r}"
        for key, value in fixed.items()
        if hf.get(key) != value
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise CheckpointError(f"{source}: unsupported configuration:\n  {listed}")


def vision_rows(param_prefix: str, hf_prefix: str, map_head: bool) -> list[Row]:
    """Returns the table of the image tower's tensors.

    Args:
      param_prefix: prefix of the parameter names.
      hf_prefix: prefix of the tensor names.
      map_head: whether the tower has an attention pooling head.
    """
    rows = [
        Row(
            "embedding/kernel",
            "embeddings.patch_embedding.weight",
            "D c h w -> h w c D",  # a convolution's kernel, output channels first
        ),
        Row("embedding/bias", "embeddings.patch_embedding.bias"),
        Row("pos_embedding", "embeddings.position_embedding.weight", "P D -> 1 P D"),
        *_blocks("Transformer/encoderblock/"),
        *_norm("Transformer/encoder_norm", "post_layernorm"),
    ]
    if map_head:
        rows += [
            Row("MAPHead_0/probe", "head.probe"),
            *_pooling_attention("MAPHead_0/MultiHeadDotProductAttention_0"),
            *_norm("MAPHead_0/LayerNorm_0", "head.layernorm"),
            *_mlp("MAPHead_0/MlpBlock_0", "head.mlp"),
        ]
    return prefixed(rows, param_prefix, hf_prefix)


def text_rows(param_prefix: str, hf_prefix: str) -> list[Row]:
    """Returns the table of the text tower's tensors.

    Args:
      param_prefix, hf_prefix: as for `vision_rows`.
    """
    rows = [
        Row("Embed_0/embedding", "embeddings.token_embedding.weight"),
        Row("pos_embedding", "embeddings.position_embedding.weight", "T D -> 1 T D"),
        *_blocks("Encoder_0/encoderblock/"),
        *_norm("Encoder_0/encoder_norm", "final_layer_norm"),
        *dense("head", "head"),
    ]
    return prefixed(rows, param_prefix, hf_prefix)


# The sigmoid loss's temperature and bias.
SCALARS = [Row("t", "logit_scale"), Row("b", "logit_bias")]


def dense(param_name: str, tensor_name: str) -> list[Row]:
    """Returns the rows of a dense layer: `Dense` here, nn.Linear in transformers.

    Args:
      param_name: name of the module in the parameters.
      tensor_name: name of the module in transformers.
    """
    return [
        Row(f"{param_name}/kernel", f"{tensor_name}.weight", "O I -> I O"),
        Row(f"{param_name}/bias", f"{tensor_name}.bias"),
    ]


def prefixed(rows: list[Row], param_prefix: str, hf_prefix: str) -> list[Row]:
    """Adds prefixes to the names of rows.

    Args:
      rows: rows of a table.
      param_prefix: prefix for the parameter names.
      hf_prefix: prefix for the tensor names.
    """
    return [
        dataclasses.replace(
            row,
            param_name=param_prefix + row.param_name,
            tensor_name=hf_prefix + row.tensor_name,
        )
        for row in rows
    ]


def _blocks(param_name: str) -> list[Row]:
    attention = "MultiHeadDotProductAttention_0"
    rows = [
        *_norm("LayerNorm_0", "layer_norm1"),
        *_projection(f"{attention}/query", "self_attn.q_proj"),
        *_projection(f"{attention}/key", "self_attn.k_proj"),
        *_projection(f"{attention}/value", "self_attn.v_proj"),
        *_output(f"{attention}/out", "self_attn.out_proj"),
        *_norm("LayerNorm_1", "layer_norm2"),
        *_mlp("MlpBlock_0", "mlp"),
    ]
    return prefixed(rows, param_name, "encoder.layers.{}.")


def _norm(param_name: str, tensor_name: str) -> list[Row]:
    return [
        Row(f"{param_name}/scale", f"{tensor_name}.weight"),
        Row(f"{param_name}/bias", f"{tensor_name}.bias"),
    ]


def _mlp(param_name: str, tensor_name: str) -> list[Row]:
    return [
        *dense(f"{param_name}/Dense_0", f"{tensor_name}.fc1"),
        *dense(f"{param_name}/Dense_1", f"{tensor_name}.fc2"),
    ]


# nn.Linear stores [out, in], with the heads N outermost in its output.
_SPLIT_KERNEL, _SPLIT_BIAS = "(N H) D -> D N H", "(N H) -> N H"


def _projection(param_name: str, tensor_name: str) -> list[Row]:
    return [
        Row(f"{param_name}/kernel", f"{tensor_name}.weight", _SPLIT_KERNEL),
        Row(f"{param_name}/bias", f"{tensor_name}.bias", _SPLIT_BIAS),
    ]


def _output(param_name: str, tensor_name: str) -> list[Row]:
    return [
        Row(f"{param_name}/kernel", f"{tensor_name}.weight", "D (N H) -> N H D"),
        Row(f"{param_name}/bias", f"{tensor_name}.bias"),
    ]


def _pooling_attention(param_name: str) -> list[Row]:
    """Rows of torch's MultiheadAttention, which stacks query, key and value weights."""
    rows = _output(f"{param_name}/out", "head.attention.out_proj")
    for third, name in enumerate(("query", "key", "value")):
        joint = "head.attention.in_proj_"
        rows += [
            Row(
                f"{param_name}/{name}/kernel",
                f"{joint}weight",
                _SPLIT_KERNEL,
                third=third,
            ),
            Row(f"{param_name}/{name}/bias", f"{joint}bias", _SPLIT_BIAS, third=third),
        ]
    return rows
