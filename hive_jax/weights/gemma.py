"""Gemma 1, 2 and 3 in transformers' format: tensors and configuration, both ways.

Gemma 3 means its text model, alone or inside of the multimodal one.
"""

from collections.abc import Mapping

from hive_jax.errors import CheckpointError
from hive_jax.models.gemma import GemmaConfig
from hive_jax.weights.siglip import prefixed, require
from hive_jax.weights.table import Row

_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
# What our module computes, and a configuration must say.
_FIXED = {
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_ACTIVATION = {
    "gemma": "hidden_act",
    "gemma2": "hidden_activation",
    "gemma3_text": "hidden_activation",
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def decoder_config(theirs: Mapping, source: str) -> GemmaConfig:
    """The decoder of a GemmaConfig, Gemma2Config or Gemma3TextConfig, complete with
    defaults.

    Raises:
      CheckpointError: it asks for what our module does not compute.
    """
    family = theirs["model_type"]
    fixed = _FIXED | {_ACTIVATION[family]: "gelu_pytorch_tanh"}
    require(theirs, fixed, source)
    if theirs.get("use_bidirectional_attention"):
        raise CheckpointError(
            f"{source}: use_bidirectional_attention is set; expected a causal decoder"
        )
    config = {name: theirs[key] for name, key in _FIELDS.items()}
    config["post_norms"] = family != "gemma"
    config["qk_norm"] = family == "gemma3_text"
    if family != "gemma":
        scalar = theirs["query_pre_attn_scalar"]
        if scalar <= 0:
            raise CheckpointError(f"{source}: query_pre_attn_scalar is {scalar}")
        config["query_scale"] = 0.0 if scalar == theirs["head_dim"] else scalar**-0.5
        config["attention_softcap"] = float(theirs["attn_logit_softcapping"] or 0)
        config["final_softcap"] = float(theirs["final_logit_softcapping"] or 0)
        config["local_layers"] = _local_layers(theirs["layer_types"], source)
        if config["local_layers"]:
            config["window"] = theirs["sliding_window"]
    return GemmaConfig(**config, **_rotary(theirs, family, source))


def _local_layers(layer_types: list[str], source: str) -> int:
    """How many local layers come before each global one."""
    locals_ = [kind == _LOCAL for kind in layer_types]
    known = set(layer_types) <= {_LOCAL, _GLOBAL}
    count = locals_.index(False) if False in locals_ else len(locals_)
    pattern = [(number + 1) % (count + 1) != 0 for number in range(len(locals_))]
    if not known or locals_ != pattern:
        raise CheckpointError(
            f"{source}: layer_types is {layer_types}; expected groups of equally many "
            f"{_LOCAL!r} and one {_GLOBAL!r}"
        )
    return count


def _rotary(theirs: Mapping, family: str, source: str) -> dict:
    """The rotary bases, and the factor that stretches the global layers' positions."""
    parameters = theirs["rope_parameters"]
    by_kind = (
        parameters
        if _GLOBAL in parameters
        else dict.fromkeys((_GLOBAL, _LOCAL), parameters)
    )
    whole, local = by_kind[_GLOBAL], by_kind[_LOCAL]
    types = (whole["rope_type"], local["rope_type"])
    if types not in (("default", "default"), ("linear", "default")) or (
        family != "gemma3_text" and types[0] != "default"
    ):
        raise CheckpointError(
            f"{source}: rotary embeddings of the types {types}; expected 'default', or "
            "'linear' in the global layers of Gemma 3"
        )
    try:
        return {
            "rope_base": float(whole["rope_theta"]),
            "local_rope_base": float(local["rope_theta"]),
            "rope_factor": float(whole["factor"]) if types[0] == "linear" else 1.0,
        }
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{source}: rope_parameters is {parameters}") from None


def family_of(config: GemmaConfig) -> str:
    """The model_type of the stock class that computes this decoder.

    Raises:
      CheckpointError: there is none.
    """
    family = {
        (False, False): "gemma",
        (True, False): "gemma2",
        (True, True): "gemma3_text",
    }
    name = family.get((config.post_norms, config.qk_norm))
    extras = (config.query_scale, config.attention_softcap, config.final_softcap)
    if name == "gemma" and (any(extras) or config.local_layers):
        name = None
    if name != "gemma3_text" and (
        config.rope_factor != 1 or config.local_rope_base != config.rope_base
    ):
        name = None
    if name is None:
        raise CheckpointError(
            f"no class of transformers computes this decoder: {config}. Gemma has no "
            "norms after its blocks, no soft-caps and no local layers; Gemma 2 has no "
            "QK-norm; Gemma 3 alone has two rotary bases"
        )
    return name


def their_config(config: GemmaConfig) -> dict:
    """The way back: JSON that transformers 4.57 and 5 read alike."""
    family = family_of(config)
    theirs = {key: getattr(config, name) for name, key in _FIELDS.items()}
    theirs = {"model_type": family, **theirs, **_FIXED}
    theirs[_ACTIVATION[family]] = "gelu_pytorch_tanh"
    theirs["rope_theta"] = config.rope_base
    if family == "gemma":
        # transformers 4 reads this one where both are there.
        theirs["hidden_activation"] = "gelu_pytorch_tanh"
        return theirs
    theirs["query_pre_attn_scalar"] = _query_scalar(config)
    theirs["attn_logit_softcapping"] = config.attention_softcap or None
    theirs["final_logit_softcapping"] = config.final_softcap or None
    theirs["sliding_window"] = config.window
    kinds = (_GLOBAL, _LOCAL)
    theirs["layer_types"] = [kinds[int(local)] for local in config.is_sliding()]
    if family == "gemma3_text":
        theirs["rope_local_base_freq"] = config.local_rope_base
        if config.rope_factor != 1:
            theirs["rope_scaling"] = {
                "rope_type": "linear",
                "factor": config.rope_factor,
            }
    return theirs


def _query_scalar(config: GemmaConfig) -> int:
    scalar = config.query_scale**-2 if config.query_scale else config.head_dim
    if abs(scalar - round(scalar)) > 1e-6 * scalar:
        raise CheckpointError(
            f"query_scale is {config.query_scale}; expected 1 / sqrt of a whole number, "
            "as transformers has it"
        )
    return round(scalar)


def decoder_rows(ours: str, theirs: str, config: GemmaConfig) -> list[Row]:
    """The decoder's tensors; `ours` and `theirs` are what the names begin with."""
    attention = [
        Row("attn/q_einsum/w", "self_attn.q_proj.weight", EINSUM),
        Row("attn/kv_einsum/w", "self_attn.k_proj.weight", EINSUM, slot=0),
        Row("attn/kv_einsum/w", "self_attn.v_proj.weight", EINSUM, slot=1),
        Row("attn/attn_vec_einsum/w", "self_attn.o_proj.weight", EINSUM_OUT),
    ]
    mlp = [
        Row("mlp/gating_einsum", "mlp.gate_proj.weight", "F E -> E F", slot=0),
        Row("mlp/gating_einsum", "mlp.up_proj.weight", "F E -> E F", slot=1),
        Row("mlp/linear", "mlp.down_proj.weight", "E F -> F E"),
    ]
    norms = {"pre_attention_norm": "input_layernorm"}
    if config.post_norms:
        norms["post_attention_norm"] = "post_attention_layernorm"
        norms["pre_ffw_norm"] = "pre_feedforward_layernorm"
        norms["post_ffw_norm"] = "post_feedforward_layernorm"
    else:
        norms["pre_ffw_norm"] = "post_attention_layernorm"
    if config.qk_norm:
        norms["attn/query_norm"] = "self_attn.q_norm"
        norms["attn/key_norm"] = "self_attn.k_norm"
    scales = [Row(f"{a}/scale", f"{b}.weight") for a, b in norms.items()]
    rows = [
        Row("embedder/input_embedding", "embed_tokens.weight"),
        *prefixed(attention + mlp + scales, "layers/", "layers.{}."),
        Row("final_norm/scale", "norm.weight"),
    ]
    return prefixed(rows, ours, theirs)


EINSUM, EINSUM_OUT = "(N H) E -> N E H", "E (N H) -> N H E"
