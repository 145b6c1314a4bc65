"""Configurations in a config.json: of an image tower, of two towers, of a decoder.

transformers' own configuration classes fill in what a config.json leaves out; no code of
a folder is ever run.
"""

import logging
import os

from hive_jax.errors import CheckpointError
from hive_jax.weights import consistency
from hive_jax.weights.hf_families import EQUIVALENT, FAMILIES

# Model types with an image tower.
_VISION = ("siglip", "siglip_vision_model", "llava", "paligemma", "gemma3", "hive")
_MROPE = ("mrope_section", "mrope_interleaved", "type", "rope_type")
# Keys of an image tower that no other component has.
_IMAGE_SIZES = ("image_size", "patch_size", "num_channels", "vision_use_head")
_SIGLIP_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
    *_IMAGE_SIZES,
)
# Model types with a decoder alone that is read -> the model_type of the decoder, if
# config.json omits it.
DECODER_ALONE = {
    **{name: name for name in (*FAMILIES, *EQUIVALENT)},
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "idefics3": "llama",
    "smolvlm": "llama",
    "internvl": "qwen2",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
}
# The same with an image tower that is read too.
_WITH_DECODER = DECODER_ALONE | {
    "llava": "llama",
    "paligemma": "gemma",
    "gemma3": "gemma3_text",
    "hive": "hive",
}


def vision_config(config: dict, source: str) -> dict:
    """Returns the SiglipVisionConfig in a config.json, with all defaults filled in.

    Args:
      config: content of config.json.
      source: path of the model, for messages.

    Raises:
      CheckpointError: it has no SigLIP image tower.
    """
    model_type = _model_type(config, _VISION, "an image tower", source)
    is_tower = model_type == "siglip_vision_model"
    tower = config if is_tower else config.get("vision_config")
    complete = _complete(tower or {}, "siglip_vision_model", source)
    # SiglipConfig has no sizes of its own; those of others may mean the decoder's.
    keys = _SIGLIP_SIZES if model_type == "siglip" else _IMAGE_SIZES
    consistency.require_agreement(config, complete, keys, source)
    return complete


def two_tower_configs(config: dict, source: str) -> tuple[dict, dict]:
    """Returns the SiglipVisionConfig and SiglipTextConfig in a config.json.

    Args:
      config: content of config.json.
      source: path of the model, for messages.

    Raises:
      CheckpointError: it is not a SigLIP with both towers.
    """
    _model_type(config, ("siglip",), "two towers", source)
    text = _complete(config.get("text_config") or {}, "siglip_text_model", source)
    return vision_config(config, source), text


def decoder_config(config: dict, source: str) -> dict:
    """Returns the configuration of the decoder in a config.json, with all defaults.

    Args:
      config: content of config.json.
      source: path of the model, for messages.

    Raises:
      CheckpointError: it has no decoder of FAMILIES.
    """
    model_type = _model_type(config, tuple(_WITH_DECODER), "a decoder", source)
    if "text_config" in config:
        decoder = config["text_config"] or {}
    else:
        decoder = config | {"model_type": _WITH_DECODER[model_type]}
    if model_type == "paligemma" and isinstance(decoder, dict):
        # Newer versions set it for PaliGemma's prefix, image and prompt; the decoder
        # itself is causal.
        decoder = decoder | {"use_bidirectional_attention": None}
    if isinstance(decoder, dict):
        decoder = {**decoder, **_one_dimensional_rope(decoder)}
    known = (*FAMILIES, *EQUIVALENT)
    decoder = _complete(decoder, _WITH_DECODER[model_type], source, known)
    # The head of a whole model is tied if the top level says so (version 5) or the
    # decoder's configuration (version 4); see `hf_decoder.resolve_head` where they disagree.
    decoder["tie_word_embeddings"] |= bool(config.get("tie_word_embeddings"))
    return decoder


def _one_dimensional_rope(decoder: dict) -> dict:
    """Returns the rotary embedding of a text alone, under its key: without the sections
    for time, row and column that a multimodal one has."""
    return {
        key: {name: value for name, value in rope.items() if name not in _MROPE}
        | {"rope_type": "default"}
        for key in ("rope_scaling", "rope_parameters")
        if isinstance(rope := decoder.get(key), dict)
        and "mrope_section" in rope
        and {rope.get("type"), rope.get("rope_type")} <= {None, "mrope", "default"}
    }


def _model_type(config: dict, known: tuple, component: str, source: str) -> str:
    model_type = config.get("model_type")
    if model_type not in known:
        raise CheckpointError(
            f"{source}: model_type is {model_type!r}; expected one with {component}: "
            f"{', '.join(known)}{explain_type(model_type)}"
        )
    return model_type


def explain_type(model_type) -> str:
    """Returns what to use instead of a model_type that is not read; "" if not known."""
    if model_type in ("siglip2", "siglip2_vision_model"):
        return (
            ". This is SigLIP 2 of variable resolution (NaFlex); its models of fixed "
            "resolution have the type 'siglip'"
        )
    return ""


def _complete(
    config: dict, default: str, source: str, known: tuple[str, ...] = ()
) -> dict:
    """Fills in the defaults of transformers' configuration class."""
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{source}: a component's configuration is {config!r:.40}"
        )
    model_type = config.get("model_type", default)
    if model_type not in (known or (default,)):
        raise CheckpointError(
            f"{source}: a component has the model_type {model_type!r}; expected "
            f"{' or '.join(known or (default,))}"
        )
    # transformers warns without torch, which configurations do not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    model_type = EQUIVALENT.get(model_type, model_type)
    # It logs values of the file as they are, which may control a terminal.
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        config = config | {"model_type": model_type}
        return transformers.CONFIG_MAPPING[model_type].from_dict(config).to_dict()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{source}: not a {model_type} configuration: {error}"
        ) from None
    finally:
        logger.setLevel(level)
