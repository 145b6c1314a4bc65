"""Hugging Face folders: where they are, and what their configurations say.

Values that a config.json leaves out are those of transformers' own configuration
classes; no code of the folder is ever run.
"""

import os
import re
from pathlib import Path

from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.io import read_json
from hive_jax.weights.hf_decoder import FAMILIES
from hive_jax.weights.hf_models import PROCESSORS
from hive_jax.weights.safetensors import CERTIFICATE, PICKLED, refused

_ASSETS = Path(__file__).parent.parent / "assets"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_HUB_FOLDERS = ["*/*"]  # the same weights for other programs
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
)
# Models that hold an image tower, a decoder, or both.
_VISION = ("siglip", "siglip_vision_model", "llava", "paligemma", "gemma3", "hive")
# ... with the model_type of their decoder, if their config.json leaves it out.
_WITH_DECODER = {
    **{family: family for family in FAMILIES},
    "llava": "llava",
    "paligemma": "gemma",
    "gemma3": "gemma3_text",
    "hive": "hive",
}


def locate(path: str | os.PathLike) -> Path:
    """The file or folder of a path, of "builtin:NAME", or of a hub id.

    A hub id is ORGANISATION/NAME, or ORGANISATION/NAME@REVISION; its files are
    downloaded once, or taken from the cache.

    Raises:
      MissingInputError: it is none of these.
      CheckpointError: it is a pickled file.
    """
    path = os.fspath(path)
    if path.startswith("builtin:"):
        return _ASSETS / f"{path.removeprefix('builtin:')}.npz"
    local = Path(path).expanduser()
    if local.is_file() and local.suffix in PICKLED:
        raise refused(local)
    hub_id = _HUB_ID.fullmatch(path)
    if local.exists() or not hub_id or local.suffix == ".npz":
        return local
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = huggingface_hub.snapshot_download(
            hub_id[1],
            revision=hub_id[2],
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_FOLDERS,
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise MissingInputError(
            f"{path} is no file or folder here, and as a hub id it could not be "
            f"downloaded: {' '.join(filter(None, lines))}\nFor Gemma: accept its "
            f"licence at https://huggingface.co/{hub_id[1]}, then `hf auth login`"
        ) from None
    return Path(found)


def vision_part(config: dict, source: str) -> dict:
    """The SiglipVisionConfig in a folder's config.json, complete.

    Raises:
      CheckpointError: there is no SigLIP image tower in it.
    """
    kind = _model_type(config, _VISION, "an image tower", source)
    part = config if kind == "siglip_vision_model" else config.get("vision_config")
    return _complete(part or {}, "siglip_vision_model", source)


def two_tower_parts(config: dict, source: str) -> tuple[dict, dict]:
    """The SiglipVisionConfig and SiglipTextConfig of a SiglipConfig, complete."""
    _model_type(config, ("siglip",), "two towers", source)
    text = _complete(config.get("text_config") or {}, "siglip_text_model", source)
    return vision_part(config, source), text


def text_part(config: dict, source: str) -> dict:
    """The configuration of the decoder in a folder's config.json, complete.

    Raises:
      CheckpointError: there is no decoder of FAMILIES in it.
    """
    kind = _model_type(config, tuple(_WITH_DECODER), "a decoder", source)
    part = config["text_config"] or {} if "text_config" in config else config
    if kind == "paligemma" and isinstance(part, dict):
        # Said of its prefix, image and prompt, and by newer versions alone.
        part = part | {"use_bidirectional_attention": None}
    return _complete(part, _WITH_DECODER[kind], source, tuple(FAMILIES))


def _model_type(config: dict, known: tuple, what: str, source: str) -> str:
    kind = config.get("model_type")
    if kind not in known:
        hint = ""
        if kind in ("siglip2", "siglip2_vision_model"):
            hint = (
                ". This is SigLIP 2 of variable resolution (NaFlex); its models of "
                "fixed resolution have the type 'siglip'"
            )
        raise CheckpointError(
            f"{source}: model_type is {kind!r}; expected one with {what}: "
            f"{', '.join(known)}{hint}"
        )
    return kind


def _complete(
    part: dict, default: str, source: str, known: tuple[str, ...] = ()
) -> dict:
    """A part of a configuration with the defaults of transformers' class."""
    if not isinstance(part, dict):
        raise CheckpointError(f"{source}: a part of config.json is {part!r:.40}")
    kind = part.get("model_type", default)
    if kind not in (known or (default,)):
        raise CheckpointError(
            f"{source}: a part has the model_type {kind!r}; expected "
            f"{' or '.join(known or (default,))}"
        )
    # Torch is not needed here, and its absence not worth a word.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(part).to_dict()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{source}: not a {kind} configuration: {error}"
        ) from None


def preprocessing(folder: Path) -> str:
    """The name of a folder's image preprocessing; see `hive_jax.data.transforms`.

    An export of ours says it itself, for transformers does not have them all.

    Raises:
      CheckpointError: it is another one than ours.
    """
    if (folder / CERTIFICATE).is_file():
        return read_json(folder / CERTIFICATE, error=CheckpointError).get(
            "preprocessing", ""
        )
    for name, key in (
        ("preprocessor_config.json", ""),
        ("processor_config.json", "image_processor"),
    ):
        if (folder / name).is_file():
            found = read_json(folder / name, error=CheckpointError)
            found = found.get(key) if key else found
            if found:
                return _known_preprocessing(found, folder / name)
    return ""


def _known_preprocessing(found: dict, path: Path) -> str:
    resample, pads = found.get("resample", 3), bool(found.get("do_pad"))
    wanted = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if not found.get("image_processor_type", "").startswith("LlavaImageProcessor"):
        wanted["do_pad"] = False  # others pad otherwise
    wrong = [
        f"{key} is {found[key]}; expected {value}"
        for key, value in wanted.items()
        if found.get(key, value) not in (None, value)
    ]
    if resample not in (2, 3):
        wrong.append(f"resample is {resample}; expected one of [2, 3]")
    if wrong:
        listed = "\n  ".join(wrong)
        raise CheckpointError(f"{path}: images prepared otherwise:\n  {listed}")
    return next(
        name
        for name, said in PROCESSORS.items()
        if (said["resample"], said.get("do_pad", False)) == (resample, pads)
    )
