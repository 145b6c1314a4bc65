"""Decoders in transformers' format: FAMILIES says how each is read and written.

To add a family, add an entry to FAMILIES, and to hive_jax/models/decoder.py whatever the
family computes differently.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from hive_jax.errors import CheckpointError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.weights.hf_siglip import prefixed, require_values
from hive_jax.weights.mapping import Row
from hive_jax.weights.safetensors import Tensor

# Layouts of nn.Linear weights [out, in] and of big_vision's einsum weights.
EINSUM, EINSUM_OUT = "(N H) E -> N E H", "E (N H) -> N H E"

# DecoderConfig field -> key of config.json, the same in all families.
_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
_SLIDING, _GLOBAL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Family:
    """A decoder family of transformers.

    Attributes:
      architecture: class with a language model head.
      fields: values of DecoderConfig that all models of the family share.
      hf_values: values that a config.json must have, and is written with.
      norms: parameter name of each norm in a layer -> name in transformers.
      read: (config.json, source) -> further fields of DecoderConfig.
      write: DecoderConfig -> further values of config.json.
      sliding_rope: whether sliding-window layers have a rotary base of their own.
      scales_image_tokens: whether transformers 4 multiplies image tokens by
        sqrt(width); see `hf_models.fold_embedding_scale`.
    """

    architecture: str
    fields: Mapping
    hf_values: Mapping
    norms: Mapping[str, str]
    read: Callable[[Mapping, str], dict] = lambda hf, source: {}
    write: Callable[[DecoderConfig], dict] = lambda config: {}
    sliding_rope: bool = False
    scales_image_tokens: bool = False

    def computes(self, config: DecoderConfig) -> bool:
        """Returns whether a model of this family can have this configuration."""
        same_rope = config.local_rope_base == config.rope_base
        rope = self.sliding_rope or (same_rope and config.rope_factor == 1)
        return rope and all(
            getattr(config, name) == value for name, value in self.fields.items()
        )


def family_of(config: DecoderConfig) -> str:
    """Returns the model_type of the family that computes a decoder.

    Raises:
      CheckpointError: no family does.
    """
    for name, family in FAMILIES.items():
        if family.computes(config):
            return name
    required = "; ".join(f"{name}: {dict(f.fields)}" for name, f in FAMILIES.items())
    raise CheckpointError(
        f"no class of transformers computes this decoder: {config}. Its families "
        f"require {required}; gemma3_text alone may have a rotary embedding of its own "
        "in sliding layers"
    )


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
    rope = {"rope_theta": config.rope_base}
    own = family.write(config)
    return {"model_type": name, **sizes, **family.hf_values, **rope, **own}


def rows(param_prefix: str, hf_prefix: str, config: DecoderConfig) -> list[Row]:
    """Returns the table of a decoder's tensors.

    Args:
      param_prefix: prefix of the parameter names.
      hf_prefix: prefix of the tensor names.
      config: architecture.
    """
    attention = [
        Row("attn/q_einsum/w", "self_attn.q_proj.weight", EINSUM),
        Row("attn/kv_einsum/w", "self_attn.k_proj.weight", EINSUM, slot=0),
        Row("attn/kv_einsum/w", "self_attn.v_proj.weight", EINSUM, slot=1),
        Row("attn/attn_vec_einsum/w", "self_attn.o_proj.weight", EINSUM_OUT),
    ]
    mlp = [
        # Slot 0 is the activated half.
        Row("mlp/gating_einsum", "mlp.gate_proj.weight", "F E -> E F", slot=0),
        Row("mlp/gating_einsum", "mlp.up_proj.weight", "F E -> E F", slot=1),
        Row("mlp/linear", "mlp.down_proj.weight", "E F -> F E"),
    ]
    norms = FAMILIES[family_of(config)].norms
    scales = [Row(f"{name}/scale", f"{hf}.weight") for name, hf in norms.items()]
    # No row for lm_head: it is tied to the embeddings, see `without_tied_head`.
    table = [
        Row("embedder/input_embedding", "embed_tokens.weight"),
        *prefixed(attention + mlp + scales, "layers/", "layers.{}."),
        Row("final_norm/scale", "norm.weight"),
    ]
    return prefixed(table, param_prefix, hf_prefix)


def without_tied_head(
    tensors: Mapping[str, Tensor], prefix: str, source: str
) -> Mapping[str, Tensor]:
    """Removes an lm_head.weight that repeats the embeddings, as some scripts save it.

    Args:
      tensors: tensors of the files by name.
      prefix: prefix of the decoder's names.
      source: path of the files, for messages.

    Raises:
      CheckpointError: the head differs from the embeddings.
    """
    name = next((name for name in tensors if name.endswith("lm_head.weight")), "")
    table = tensors.get(f"{prefix}embed_tokens.weight")
    both = name and table is not None
    if both and not np.array_equal(tensors[name].read(), table.read()):
        raise CheckpointError(
            f"{source}: lm_head.weight is not the embedding table; expected tied weights"
        )
    return {key: tensor for key, tensor in tensors.items() if key != name}


def _read_rope(hf: Mapping, family: Family, source: str) -> dict:
    """Reads the rotary bases and the factor that scales positions in global layers."""
    parameters = hf["rope_parameters"]
    # One set of parameters for all layers, or one for each type of layer (Gemma 3).
    by_layer_type = (
        parameters
        if _GLOBAL in parameters
        else dict.fromkeys((_GLOBAL, _SLIDING), parameters)
    )
    whole, sliding = by_layer_type[_GLOBAL], by_layer_type[_SLIDING]
    types = (whole["rope_type"], sliding["rope_type"])
    if types not in (("default", "default"), ("linear", "default")) or (
        not family.sliding_rope and types[0] != "default"
    ):
        raise CheckpointError(
            f"{source}: rotary embeddings of the types {types}; expected 'default', or "
            "'linear' in the global layers of Gemma 3"
        )
    try:
        return {
            "rope_base": float(whole["rope_theta"]),
            "local_rope_base": float(sliding["rope_theta"]),
            "rope_factor": float(whole["factor"]) if types[0] == "linear" else 1.0,
        }
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{source}: rope_parameters is {parameters}; expected numbers for "
            "rope_theta, and for factor where rope_type is 'linear'"
        ) from None


def _read_gemma2(hf: Mapping, source: str) -> dict:
    scalar = hf["query_pre_attn_scalar"]
    if scalar <= 0:
        raise CheckpointError(
            f"{source}: query_pre_attn_scalar is {scalar}; expected a positive number"
        )
    config = {
        "query_scale": 0.0 if scalar == hf["head_dim"] else scalar**-0.5,
        "attention_softcap": float(hf["attn_logit_softcapping"] or 0),
        "final_softcap": float(hf["final_logit_softcapping"] or 0),
        "local_layers": _local_layers(hf["layer_types"], source),
    }
    if config["local_layers"]:
        config["window"] = hf["sliding_window"]
    return config


def _write_gemma2(config: DecoderConfig) -> dict:
    layer_types = (_GLOBAL, _SLIDING)
    return {
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
        "sliding_window": config.window,
        "layer_types": [layer_types[int(s)] for s in config.is_sliding()],
    }


def _write_gemma3(config: DecoderConfig) -> dict:
    # Version 4's keys, which version 5 converts to `rope_parameters`.
    hf = _write_gemma2(config) | {"rope_local_base_freq": config.local_rope_base}
    if config.rope_factor != 1:
        hf["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_factor}
    return hf


def _local_layers(layer_types: list[str], source: str) -> int:
    """Returns how many sliding-window layers precede each global one."""
    sliding = [layer_type == _SLIDING for layer_type in layer_types]
    known = set(layer_types) <= {_SLIDING, _GLOBAL}
    count = sliding.index(False) if False in sliding else len(sliding)
    pattern = [(number + 1) % (count + 1) != 0 for number in range(len(sliding))]
    if not known or sliding != pattern:
        raise CheckpointError(
            f"{source}: layer_types is {layer_types}; expected groups of equally many "
            f"{_SLIDING!r} and one {_GLOBAL!r}"
        )
    return count


def _query_scalar(config: DecoderConfig) -> int:
    # transformers stores an integer s for the scale s ** -0.5.
    scalar = config.query_scale**-2 if config.query_scale else config.head_dim
    if abs(scalar - round(scalar)) > 1e-6 * scalar:
        raise CheckpointError(
            f"query_scale is {config.query_scale}; expected 1 / sqrt of a whole number, "
            "as transformers has it"
        )
    return round(scalar)


_GEMMA_FIELDS = {
    "activation": "gelu",
    "norm_offset": 1.0,
    "norm_eps": 1e-6,
    "embed_scale": True,
}
# attention_bias and untied heads are legal in transformers' classes, but the Gemmas
# have neither.
_GEMMA_VALUES = {
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_GELU = "gelu_pytorch_tanh"
_POST_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FAMILIES = {
    "gemma": Family(
        architecture="GemmaForCausalLM",
        fields=_GEMMA_FIELDS
        | {"post_norms": False, "qk_norm": False, "query_scale": 0.0}
        | {"attention_softcap": 0.0, "final_softcap": 0.0, "local_layers": 0},
        hf_values=_GEMMA_VALUES | {"hidden_act": _GELU},
        norms={
            "pre_attention_norm": "input_layernorm",
            "pre_ffw_norm": "post_attention_layernorm",
        },
        # transformers 4 prefers this key to hidden_act.
        write=lambda config: {"hidden_activation": _GELU},
        scales_image_tokens=True,
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        fields=_GEMMA_FIELDS | {"post_norms": True, "qk_norm": False},
        hf_values=_GEMMA_VALUES | {"hidden_activation": _GELU},
        norms=_POST_NORMS,
        read=_read_gemma2,
        write=_write_gemma2,
        scales_image_tokens=True,
    ),
    # The text model of Gemma 3, alone or as a component of the multimodal one.
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        fields=_GEMMA_FIELDS | {"post_norms": True, "qk_norm": True},
        hf_values=_GEMMA_VALUES | {"hidden_activation": _GELU},
        norms=_POST_NORMS
        | {"attn/query_norm": "self_attn.q_norm", "attn/key_norm": "self_attn.k_norm"},
        read=_read_gemma2,
        write=_write_gemma3,
        sliding_rope=True,
    ),
}
