"""Hugging Face folders and hub ids: downloads, and the image preprocessing in them."""

import logging
import os
import re
from pathlib import Path

from hive_jax.buckets import is_url
from hive_jax.downloads import local_copy
from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.io import read_json, require_path
from hive_jax.json_text import require_types
from hive_jax.weights import formats
from hive_jax.weights.hf_image_processor import PROCESSORS
from hive_jax.weights.safetensors import EXPORT_REPORT

_log = logging.getLogger(__name__)

_ASSETS = Path(__file__).parent.parent / "assets"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model", "*.jinja"]
_GATED = ("gemma", "meta-llama")  # in names of models that need a login
_HUB_FOLDERS = ["*/*"]  # the same weights in formats of other programs
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")


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


def uses_chat_template(path: str) -> bool:
    """Returns whether a folder is the export of a run on conversations.

    Args:
      path: as for `locate`.

    Raises:
      CheckpointError: its report is damaged.
    """
    report = locate(path) / EXPORT_REPORT
    if not report.is_file():
        return False
    return read_json(report, error=CheckpointError).get("chat_template") is True


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
