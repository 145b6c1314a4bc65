"""Decoders in transformers' format: their config.json, and the table of their tensors.

hive_jax/weights/hf_families.py says how each family is read and written.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from hive_jax.errors import CheckpointError
from hive_jax.models.config import DecoderConfig
from hive_jax.models.rotary import HIGH_FREQ_FACTOR, LOW_FREQ_FACTOR
from hive_jax.weights.hf_families import (
    FAMILIES,
    GLOBAL,
    SLIDING,
    Family,
    family_of,
    rope_type,
)
from hive_jax.weights.hf_siglip import prefixed, require_values
from hive_jax.weights.mapping import Row
from hive_jax.weights.safetensors import Tensor

# Layouts of nn.Linear weights [out, in] and of big_vision's einsum weights.
EINSUM, EINSUM_OUT = "(N H) E -> N E H", "E (N H) -> N H E"
BIAS = "(N H) -> N H"

# DecoderConfig field -> key of config.json, the same in all families.
_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "tied_head": "tie_word_embeddings",
}


def config_from_hf(hf: Mapping, source: str) -> DecoderConfig:
    """Converts the configuration of transformers.

    Args:
      hf: configuration of the decoder, complete with transformers' defaults; its
        model_type is a key of FAMILIES.
      source: path of the configuration, for messages.

    Raises:
      CheckpointError: `Decoder` does not compute this model.
    """
    family = FAMILIES[hf["model_type"]]
    require_values(hf, family.hf_values, source)
    if hf.get("use_bidirectional_attention"):
        raise CheckpointError(
            f"{source}: use_bidirectional_attention is set; expected a causal decoder"
        )
    heads, kv_heads = hf["num_attention_heads"], hf["num_key_value_heads"]
    if kv_heads > 0 and heads % kv_heads:
        raise CheckpointError(
            f"{source}: num_attention_heads is {heads} and num_key_value_heads "
            f"{kv_heads}; expected a multiple of it"
        )
    config = {name: hf[key] for name, key in _FIELDS.items()}
    # Qwen 2 has no such key.
    config["head_dim"] = hf.get("head_dim") or hf["hidden_size"] // max(heads, 1)
    config |= {**family.fields, **family.read(hf, source)}
    return DecoderConfig(**config, **_read_rope(hf, family, source))


def config_to_hf(config: DecoderConfig) -> dict:
    """Inverse of `config_from_hf`: a config.json for transformers 4.57 and 5.

    Raises:
      CheckpointError: no family computes this decoder.
    """
    name = family_of(config)
    family = FAMILIES[name]
    sizes = {key: getattr(config, field) for field, key in _FIELDS.items()}
    sizes["head_dim"] = config.head_dim
    own = _write_rope(config) | family.write(config)
    return {"model_type": name, **sizes, **family.hf_values, **own}


def rows(
    param_prefix: str,
    hf_prefix: str,
    config: DecoderConfig,
    head: str = "lm_head.weight",
) -> list[Row]:
    """Returns the table of a decoder's tensors.

    Args:
      param_prefix: prefix of the parameter names.
      hf_prefix: prefix of the tensor names.
      config: architecture.
      head: name of the tensor of an untied head; see `head_name`.
    """
    attention = [
        Row("attn/q_einsum/w", "self_attn.q_proj.weight", EINSUM),
        Row("attn/kv_einsum/w", "self_attn.k_proj.weight", EINSUM, slot=0),
        Row("attn/kv_einsum/w", "self_attn.v_proj.weight", EINSUM, slot=1),
        Row("attn/attn_vec_einsum/w", "self_attn.o_proj.weight", EINSUM_OUT),
    ]
    if config.qkv_bias:
        attention += [
            Row("attn/q_bias", "self_attn.q_proj.bias", BIAS),
            Row("attn/kv_bias", "self_attn.k_proj.bias", BIAS, slot=0),
            Row("attn/kv_bias", "self_attn.v_proj.bias", BIAS, slot=1),
        ]
    mlp = [
        # Slot 0 is the activated half.
        Row("mlp/gating_einsum", "mlp.gate_proj.weight", "F E -> E F", slot=0),
        Row("mlp/gating_einsum", "mlp.up_proj.weight", "F E -> E F", slot=1),
        Row("mlp/linear", "mlp.down_proj.weight", "E F -> F E"),
    ]
    norms = FAMILIES[family_of(config)].norms
    scales = [Row(f"{name}/scale", f"{hf}.weight") for name, hf in norms.items()]
    table = [
        Row("embedder/input_embedding", "embed_tokens.weight"),
        *prefixed(attention + mlp + scales, "layers/", "layers.{}."),
        Row("final_norm/scale", "norm.weight"),
    ]
    table = prefixed(table, param_prefix, hf_prefix)
    if config.tied_head:  # see `resolve_head`
        return table
    return [*table, Row(f"{param_prefix}lm_head/output_embedding", head)]


def head_name(tensors: Mapping[str, Tensor]) -> str:
    """Returns the name of the output head's tensor, which depends on the model and on the
    version of transformers that saved it."""
    ending = "lm_head.weight"
    return next((name for name in tensors if name.endswith(ending)), ending)


def resolve_head(
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    prefix: str,
    unclear: bool,
    source: str,
) -> tuple[DecoderConfig, Mapping[str, Tensor]]:
    """Compares the output head in the files with what their configuration says of it.

    Args:
      config: architecture as config.json has it.
      tensors: tensors of the files by name.
      prefix: prefix of the decoder's names.
      unclear: config.json both ties the head and does not, of a whole model and of its
        decoder: the files decide.
      source: path of the files, for messages.

    Returns:
      The configuration, and the tensors without an lm_head.weight that repeats the
      embeddings, as some scripts save it.

    Raises:
      CheckpointError: a tied head differs from the embeddings.
    """
    if not config.tied_head:
        return config, tensors
    name = head_name(tensors)
    head, table = tensors.get(name), tensors.get(f"{prefix}embed_tokens.weight")
    both = head is not None and table is not None
    if both and not np.array_equal(head.read(), table.read()):
        if unclear:
            return dataclasses.replace(config, tied_head=False), tensors
        raise CheckpointError(
            f"{source}: lm_head.weight is not the embedding table; expected equal ones, "
            "because config.json ties them (tie_word_embeddings, or MobileLLM's "
            "share_embedding)"
        )
    return config, {key: tensor for key, tensor in tensors.items() if key != name}


def _read_rope(hf: Mapping, family: Family, source: str) -> dict:
    """Reads the rotary bases, and how the context of global layers is extended."""
    parameters = hf["rope_parameters"]
    # One set of parameters for all layers, or one for each type of layer (Gemma 3).
    by_layer_type = (
        parameters
        if GLOBAL in parameters
        else dict.fromkeys((GLOBAL, SLIDING), parameters)
    )
    whole, sliding = by_layer_type[GLOBAL], by_layer_type[SLIDING]
    kind, known = whole["rope_type"], family.rope_types
    if kind not in known:
        raise CheckpointError(
            f"{source}: rope_type is {kind!r}; expected {' or '.join(map(repr, known))}"
        )
    if family.sliding_rope:
        require_values(
            {"rope_type": "default", **sliding}, {"rope_type": "default"}, source
        )
    fixed = {"partial_rotary_factor": 1.0}
    if kind == "llama3":
        fixed |= {"low_freq_factor": LOW_FREQ_FACTOR}
        fixed |= {"high_freq_factor": HIGH_FREQ_FACTOR}
    require_values({"partial_rotary_factor": 1.0, **whole}, fixed, source)
    try:
        config = {
            "rope_base": float(whole["rope_theta"]),
            "local_rope_base": float(sliding["rope_theta"]),
        }
        if kind != "default":
            config["rope_factor"] = float(whole["factor"])
        if kind == "llama3":
            length = whole["original_max_position_embeddings"]
            config["rope_original_length"] = int(length)
        return config
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{source}: rope_parameters is {parameters}; expected numbers for "
            "rope_theta, for factor where rope_type is 'linear' or 'llama3', and for "
            "original_max_position_embeddings where it is 'llama3'"
        ) from None


def _write_rope(config: DecoderConfig) -> dict:
    # Version 4's keys, which version 5 converts to `rope_parameters`.
    hf = {"rope_theta": config.rope_base}
    kind = rope_type(config)
    if kind == "default":
        return hf
    scaling = {"rope_type": kind, "factor": config.rope_factor}
    if kind == "llama3":
        length = config.rope_original_length
        scaling |= {
            "low_freq_factor": LOW_FREQ_FACTOR,
            "high_freq_factor": HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": length,
        }
        # transformers expects a longer context than the original one.
        hf["max_position_embeddings"] = round(config.rope_factor * length)
    return hf | {"rope_scaling": scaling}
