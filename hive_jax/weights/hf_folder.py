"""Hugging Face folders and hub ids: downloads, and the configurations in them.

transformers' own configuration classes fill in what a config.json leaves out; no code of
a folder is ever run.
"""

import logging
import os
import re
from pathlib import Path

from hive_jax.buckets import is_url
from hive_jax.downloads import local_copy
from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.io import read_json, require_path
from hive_jax.json_text import require_types
from hive_jax.weights import consistency, formats
from hive_jax.weights.hf_families import EQUIVALENT, FAMILIES
from hive_jax.weights.hf_models import PROCESSORS
from hive_jax.weights.safetensors import EXPORT_REPORT

_log = logging.getLogger(__name__)

_ASSETS = Path(__file__).parent.parent / "assets"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model", "*.jinja"]
_GATED = ("gemma", "meta-llama")  # in names of models that need a login
_HUB_FOLDERS = ["*/*"]  # the same weights in formats of other programs
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
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


def locate(path: str | os.PathLike) -> Path:
    """Returns the local file or folder of a path, URL, "builtin:NAME", or hub id.

    A hub id is ORGANIZATION/NAME or ORGANIZATION/NAME@REVISION; its files are downloaded
    once and cached.

    Raises:
      ConfigError: a URL that cannot be opened.
      MissingInputError: the hub id or URL could not be downloaded, or nothing built
        in has this name.
      CheckpointError: a file of weights in a format that is not read.
    """
    path = os.fspath(path)
    require_path(path, "path")
    if path.startswith("builtin:"):
        builtin = {f"builtin:{file.stem}": file for file in _ASSETS.glob("*.npz")}
        if path not in builtin:
            raise MissingInputError(
                f"{path} is not built in; expected one of {', '.join(sorted(builtin))}"
            )
        return builtin[path]
    local = local_copy(path).expanduser()
    if local.is_file():
        formats.require_readable_file(local)
    hub_id = _HUB_ID.fullmatch(path)
    if local.exists() or not hub_id or local.suffix == ".npz":
        return local
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot = huggingface_hub.snapshot_download(
            hub_id[1],
            revision=hub_id[2],
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_FOLDERS,
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        message = (
            f"{path} is not a local file or folder, and could not be downloaded as a "
            f"hub id: {' '.join(filter(None, lines))}"
        )
        if any(name in hub_id[1].lower() for name in _GATED):
            message += (
                "\nThe model has a licence to accept, once, at "
                f"https://huggingface.co/{hub_id[1]}; then run `hf auth login`"
            )
        raise MissingInputError(message) from None
    return Path(snapshot)


def lasting_path(path: str, folder: Path) -> str:
    """Returns the path to keep in a config for files that `locate` returned: the URL, of
    which `folder` is a copy on this machine alone, or the folder."""
    return path if is_url(path) else str(folder)


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
    # decoder's configuration (version 4); see `has_own_head` where they disagree.
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

    # It logs values of the file as they are, which may control a terminal.
    model_type = EQUIVALENT.get(model_type, model_type)
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


def assume_preprocessing(source: str) -> str:
    """Returns the image preprocessing of weights that record none, and warns of it.

    Args:
      source: path of the weights, for the message.
    """
    _log.warning(
        "%s does not record its image preprocessing: assuming 'hf_bicubic', that of "
        "SigLIP (SigLIP 2: 'hf_bilinear'); set preprocessing to choose another",
        source,
    )
    return "hf_bicubic"


def preprocessing(folder: Path, image_size: int) -> str:
    """Returns the name of a folder's image preprocessing, "" if it records none.

    The names are those of `hive_jax.data.transforms`.

    Args:
      folder: of the model.
      image_size: of its image tower, in pixels.

    Raises:
      CheckpointError: hive_jax does not have this preprocessing, or it is for images of
        another size.
    """
    # Exports record the name themselves, because transformers lacks "bv_bilinear".
    if (folder / EXPORT_REPORT).is_file():
        report = read_json(folder / EXPORT_REPORT, error=CheckpointError)
        name = report.get("preprocessing", "")
        known = ["", *PROCESSORS, "bv_bilinear"]  # a list: JSON values may not hash
        if name not in known:
            raise CheckpointError(
                f"{folder / EXPORT_REPORT}: preprocessing is {name!r:.60}; expected one "
                f"of {known}"
            )
        return name
    for name, key in (
        ("preprocessor_config.json", ""),
        ("processor_config.json", "image_processor"),
    ):
        if (folder / name).is_file():
            processor = read_json(folder / name, error=CheckpointError)
            if key and processor.get(key) is not None:
                types = {key: dict}
                require_types(
                    processor, types, str(folder / name), error=CheckpointError
                )
            processor = processor.get(key) if key else processor
            if processor:
                return _preprocessing_of(processor, folder / name, image_size)
    return ""


def _preprocessing_of(processor: dict, path: Path, image_size: int) -> str:
    resample, pads = processor.get("resample", 3), bool(processor.get("do_pad"))
    required = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    key = "image_processor_type"
    if key in processor:
        require_types(processor, {key: str}, str(path), error=CheckpointError)
    if not processor.get(key, "").startswith("LlavaImageProcessor"):
        required["do_pad"] = False  # other processors pad in other ways
    wrong = [
        f"{key} is {processor[key]}; expected {value}"
        for key, value in required.items()
        if processor.get(key, value) not in (None, value)
    ]
    if resample not in (2, 3):
        wrong.append(f"resample is {resample}; expected one of [2, 3]")
    size = processor.get("size")
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else []
    if any(side not in (None, image_size) for side in sides):
        wrong.append(
            f"size is {size}; expected {image_size}, image_size of config.json"
        )
    if wrong:
        listed = "\n  ".join(wrong)
        raise CheckpointError(f"{path}: unsupported preprocessing:\n  {listed}")
    return next(
        name
        for name, values in PROCESSORS.items()
        if (values["resample"], values.get("do_pad", False)) == (resample, pads)
    )
