"""SigLIP in transformers' format: one table of tensors, one of configuration.

Covers SigLIP and SigLIP 2 of fixed resolution (`SiglipModel`, `SiglipVisionModel`).
"""

from collections.abc import Mapping

from hive_jax.errors import CheckpointError
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.weights.table import Row

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
# What our modules compute, and a configuration must say.
_FIXED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def vision_config(theirs: Mapping, source: str) -> SiglipConfig:
    """The image tower of a SiglipVisionConfig, complete with defaults.

    Raises:
      CheckpointError: it asks for what our module does not compute.
    """
    require(theirs, _FIXED | {"num_channels": 3}, source)
    ours = {name: theirs[key] for name, key in _VISION_FIELDS.items()}
    for name in ("patch_size", "image_size"):
        if not isinstance(ours[name], int):
            raise CheckpointError(
                f"{source}: {name} is {ours[name]!r}; expected one number, the side of "
                "a square"
            )
    return SiglipConfig(**ours)


def text_config(theirs: Mapping, source: str) -> TextTowerConfig:
    """The text tower of a SiglipTextConfig; errors as `vision_config`."""
    require(theirs, _FIXED, source)
    return TextTowerConfig(**{name: theirs[key] for name, key in _TEXT_FIELDS.items()})


def their_vision_config(config: SiglipConfig) -> dict:
    """The way back: a SiglipVisionConfig's JSON."""
    theirs = {key: getattr(config, name) for name, key in _VISION_FIELDS.items()}
    return {"model_type": "siglip_vision_model", **theirs, "num_channels": 3} | _FIXED


def their_text_config(config: TextTowerConfig) -> dict:
    """The way back: a SiglipTextConfig's JSON."""
    theirs = {key: getattr(config, name) for name, key in _TEXT_FIELDS.items()}
    return {"model_type": "siglip_text_model", **theirs} | _FIXED


def require(theirs: Mapping, fixed: Mapping, source: str) -> None:
    """Raises CheckpointError unless the configuration has the `fixed` values."""
    wrong = [
        f"{key} is {theirs.get(key)!r}; expected {value!r}"
        for key, value in fixed.items()
        if theirs.get(key) != value
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise CheckpointError(f"{source}: a model we do not have:\n  {listed}")


def vision_rows(ours: str, theirs: str, map_head: bool) -> list[Row]:
    """The image tower; `ours` and `theirs` are what the names begin with."""
    rows = [
        Row(
            "embedding/kernel",
            "embeddings.patch_embedding.weight",
            "D c h w -> h w c D",
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
    return prefixed(rows, ours, theirs)


def text_rows(ours: str, theirs: str) -> list[Row]:
    """The text tower."""
    rows = [
        Row("Embed_0/embedding", "embeddings.token_embedding.weight"),
        Row("pos_embedding", "embeddings.position_embedding.weight", "T D -> 1 T D"),
        *_blocks("Encoder_0/encoderblock/"),
        *_norm("Encoder_0/encoder_norm", "final_layer_norm"),
        *dense("head", "head"),
    ]
    return prefixed(rows, ours, theirs)


# The sigmoid loss's temperature and bias.
SCALARS = [Row("t", "logit_scale"), Row("b", "logit_bias")]


def dense(ours: str, theirs: str) -> list[Row]:
    """A Dense and an nn.Linear."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", "O I -> I O"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    ]


def prefixed(rows: list[Row], ours: str, theirs: str) -> list[Row]:
    """The same rows with both names continued to the left."""
    return [
        Row(ours + row.ours, theirs + row.theirs, row.layout, row.slot, row.third)
        for row in rows
    ]


def _blocks(ours: str) -> list[Row]:
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
    return prefixed(rows, ours, "encoder.layers.{}.")


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{theirs}.weight"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    ]


def _mlp(ours: str, theirs: str) -> list[Row]:
    return [
        *dense(f"{ours}/Dense_0", f"{theirs}.fc1"),
        *dense(f"{ours}/Dense_1", f"{theirs}.fc2"),
    ]


_SPLIT_KERNEL, _SPLIT_BIAS = "(N H) D -> D N H", "(N H) -> N H"


def _projection(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", _SPLIT_KERNEL),
        Row(f"{ours}/bias", f"{theirs}.bias", _SPLIT_BIAS),
    ]


def _output(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", "D (N H) -> N H D"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    ]


def _pooling_attention(ours: str) -> list[Row]:
    """torch's MultiheadAttention, with query, key and value below each other."""
    rows = _output(f"{ours}/out", "head.attention.out_proj")
    for third, name in enumerate(("query", "key", "value")):
        joint = "head.attention.in_proj_"
        rows += [
            Row(f"{ours}/{name}/kernel", f"{joint}weight", _SPLIT_KERNEL, third=third),
            Row(f"{ours}/{name}/bias", f"{joint}bias", _SPLIT_BIAS, third=third),
        ]
    return rows
