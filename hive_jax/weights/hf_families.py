"""Decoder families of transformers, one entry of FAMILIES each.

To add a family, add its entry here, and to hive_jax/models/decoder_block.py whatever the
family computes differently.
"""

import dataclasses
from collections.abc import Callable, Mapping

from hive_jax.errors import CheckpointError
from hive_jax.models.config import DecoderConfig

SLIDING, GLOBAL = "sliding_attention", "full_attention"


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
      rope_types: types of the rotary embedding in transformers' words.
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
    rope_types: tuple[str, ...] = ("default",)
    sliding_rope: bool = False
    scales_image_tokens: bool = False

    def computes(self, config: DecoderConfig) -> bool:
        """Returns whether a model of this family can have this configuration."""
        same_rope = config.local_rope_base == config.rope_base
        rope = self.sliding_rope or same_rope
        return (
            rope
            and rope_type(config) in self.rope_types
            and all(
                getattr(config, name) == value for name, value in self.fields.items()
            )
        )


def rope_type(config: DecoderConfig) -> str:
    """Returns transformers' name of a decoder's rotary embedding in global layers."""
    if config.rope_original_length:
        return "llama3"
    return "default" if config.rope_factor == 1 else "linear"


def family_of(config: DecoderConfig) -> str:
    """Returns the model_type of the family that computes a decoder.

    Raises:
      CheckpointError: no family does.
    """
    for name, family in FAMILIES.items():
        if family.computes(config):
            return name
    required = "; ".join(
        f"{name}: {dict(f.fields)}, rotary embedding {' or '.join(f.rope_types)}"
        for name, f in FAMILIES.items()
    )
    raise CheckpointError(
        f"no class of transformers computes this decoder: {config}. Its families "
        f"require {required}; gemma3_text alone may have a rotary embedding of its own "
        "in sliding layers"
    )


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
    layer_types = (GLOBAL, SLIDING)
    return {
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
        "sliding_window": config.window,
        "layer_types": [layer_types[int(s)] for s in config.is_sliding()],
    }


def _write_gemma3(config: DecoderConfig) -> dict:
    # Version 4's key, which version 5 converts to `rope_parameters`.
    return _write_gemma2(config) | {"rope_local_base_freq": config.local_rope_base}


def _local_layers(layer_types: list[str], source: str) -> int:
    """Returns how many sliding-window layers precede each global one."""
    sliding = [layer_type == SLIDING for layer_type in layer_types]
    known = set(layer_types) <= {SLIDING, GLOBAL}
    count = sliding.index(False) if False in sliding else len(sliding)
    pattern = [(number + 1) % (count + 1) != 0 for number in range(len(sliding))]
    if not known or sliding != pattern:
        raise CheckpointError(
            f"{source}: layer_types is {layer_types}; expected groups of equally many "
            f"{SLIDING!r} and one {GLOBAL!r}"
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


def _read_llama(hf: Mapping, source: str) -> dict:
    # MobileLLM's own keys: `share_embedding` ties the head, whatever
    # `tie_word_embeddings` is, and `layer_sharing` runs each layer twice.
    if hf.get("layer_sharing"):
        raise CheckpointError(
            f"{source}: layer_sharing is {hf['layer_sharing']}; expected a MobileLLM "
            "without it, whose layers run once (not MobileLLM-LS)"
        )
    return {"tied_head": hf["tie_word_embeddings"] or bool(hf.get("share_embedding"))}


def _read_qwen(hf: Mapping, source: str) -> dict:
    if SLIDING in hf["layer_types"]:
        raise CheckpointError(
            f"{source}: use_sliding_window is {hf['use_sliding_window']} and layer_types "
            f"has {SLIDING!r}; expected {GLOBAL!r} in all layers, as in the published "
            "models"
        )
    return {}


_GEMMA_FIELDS = {
    "activation": "gelu",
    "norm_offset": 1.0,
    "norm_eps": 1e-6,
    "embed_scale": True,
    "qkv_bias": False,
    "tied_head": True,
}
# attention_bias and untied heads are legal in transformers' classes, but the Gemmas
# have neither.
_GEMMA_VALUES = {
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_GELU = "gelu_pytorch_tanh"
_PLAIN = {
    "post_norms": False,
    "query_scale": 0.0,
    "attention_softcap": 0.0,
    "final_softcap": 0.0,
    "local_layers": 0,
}
_LLAMA_FIELDS = _PLAIN | {
    "activation": "silu",
    "norm_offset": 0.0,
    "embed_scale": False,
}
_PRE_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "pre_ffw_norm": "post_attention_layernorm",
}
_POST_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QK_NORMS = {
    "attn/query_norm": "self_attn.q_norm",
    "attn/key_norm": "self_attn.k_norm",
}
FAMILIES = {
    "gemma": Family(
        architecture="GemmaForCausalLM",
        fields=_GEMMA_FIELDS | _PLAIN | {"qk_norm": False},
        hf_values=_GEMMA_VALUES | {"hidden_act": _GELU},
        norms=_PRE_NORMS,
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
        norms=_POST_NORMS | _QK_NORMS,
        read=_read_gemma2,
        write=_write_gemma3,
        rope_types=("default", "linear"),
        sliding_rope=True,
    ),
    # Llama 1, 2 and 3, and what is published in its format: SmolLM 2, MobileLLM.
    "llama": Family(
        architecture="LlamaForCausalLM",
        fields=_LLAMA_FIELDS | {"qk_norm": False, "qkv_bias": False},
        hf_values={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        norms=_PRE_NORMS,
        read=_read_llama,
        rope_types=("default", "linear", "llama3"),
    ),
    # Qwen 2 and 2.5.
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        fields=_LLAMA_FIELDS | {"qk_norm": False, "qkv_bias": True},
        hf_values={"hidden_act": "silu"},
        norms=_PRE_NORMS,
        read=_read_qwen,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        fields=_LLAMA_FIELDS | {"qk_norm": True, "qkv_bias": False},
        hf_values={"hidden_act": "silu", "attention_bias": False},
        norms=_PRE_NORMS | _QK_NORMS,
        read=_read_qwen,
    ),
}
# model_type -> family that computes the same. The Qwen-VLs rotate by time, row and column,
# which are equal in a text.
EQUIVALENT = {
    "mobilellm": "llama",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
