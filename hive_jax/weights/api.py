"""Loading and saving of single models, in one line each."""

import dataclasses
import logging
import os
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.io import atomic_dir, write_json
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.weights import big_vision, hf_models, sources
from hive_jax.weights.mapping import param_shapes, resize_positions
from hive_jax.weights.safetensors import cast, dtype_named

FORMATS = ("huggingface", "big_vision")

_log = logging.getLogger(__name__)


def load_encoder(path: str, image_size: int | None = None) -> tuple[SiglipConfig, dict]:
    """A SigLIP image tower, for `SiglipEncoder(config).apply({"params": params}, ...)`.

    Args:
      path: a Hugging Face folder or hub id (SigLIP or SigLIP 2 of fixed resolution,
        one tower or two, or a model with such a tower in it), or a big_vision .npz.
      image_size: side of other images than the tower was trained for; its position
        embedding is resized.

    Returns:
      The configuration, and float32 NumPy arrays. A warning is logged where images are
      prepared otherwise than `save_encoder` says by default (SigLIP 2, big_vision).

    Raises:
      ConfigError: images smaller than a patch.
      MissingInputError: there is nothing at `path`, or a file is missing.
      CheckpointError: the files are damaged or of another model; every tensor that is
        missing, unexpected or of another shape or dtype is listed.
    """
    part = sources.open_encoder(path)
    params = part.params()
    if part.preprocessing not in ("", "hf_bicubic"):
        _log.warning(
            "%s: images are prepared as %r; save_encoder needs preprocessing=%r",
            path,
            part.preprocessing,
            part.preprocessing,
        )
    if image_size is not None and image_size < part.config.patch_size:
        raise ConfigError(
            f"image_size is {image_size}; expected {part.config.patch_size} or more, "
            "the side of a patch"
        )
    if image_size is None:
        return part.config, params
    config = dataclasses.replace(part.config, image_size=image_size)
    position = resize_positions(params["pos_embedding"], config.num_patches)
    return config, params | {"pos_embedding": position}


def load_decoder(
    path: str, config: DecoderConfig | None = None
) -> tuple[DecoderConfig, dict]:
    """A Gemma 1, 2 or 3 decoder, for `Decoder(config).apply({"params": params}, tokens)`.

    Args:
      path: as for `load_encoder`.
      config: what the decoder is; needed for big_vision's .npz of a Gemma 2, whose
        arrays do not show it (`decoder_config("gemma2_2b")`).

    Returns, raises: as `load_encoder`.
    """
    part = sources.open_decoder(path, config)
    return part.config, part.params()


def load_two_towers(path: str) -> tuple[SiglipConfig, TextTowerConfig, dict]:
    """Both towers of a SigLIP, for `TwoTowers(image, text).apply(...)`; arguments and
    errors as `load_encoder`."""
    part = sources.open_two_towers(path)
    return *part.config, part.params()


def save_encoder(
    path: str | os.PathLike,
    config: SiglipConfig,
    params: Mapping,
    format: str = "huggingface",
    dtype: str = "float32",
    preprocessing: str = "hf_bicubic",
) -> None:
    """Writes an image tower for others to load.

    Args:
      path: a folder for `SiglipVisionModel.from_pretrained`, or an .npz file for
        big_vision; nothing may be there yet.
      params: as from `load_encoder`, or of any `SiglipEncoder(config)`.
      format: "huggingface" or "big_vision".
      dtype: "float32", "bfloat16" or "float16", of the tensors in the files.
      preprocessing: how images are prepared; see hive_jax/data/transforms.py.
        transformers has no "bv_bilinear".

    Raises:
      ConfigError: another format, dtype or preprocessing.
      CheckpointError: `params` are not those of `config`, and all differences are
        listed; or they are not finite in `dtype`.
      OutputError: there is something at `path`, or it cannot be written; nothing is
        left of it.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    as_type = dtype_named(dtype)
    known = list(hf_models.PROCESSORS)
    if format == "big_vision":
        known.append("bv_bilinear")
    if preprocessing not in known:
        raise ConfigError(
            f"preprocessing is {preprocessing!r}; expected one of {', '.join(known)} "
            f"for the format {format!r}"
        )
    arrays = require_params(config, params)
    if format == "big_vision":
        about = {"img": dataclasses.asdict(config), "preprocessing": preprocessing}
        short = {name: cast(name, array, as_type) for name, array in arrays.items()}
        big_vision.save_npz(path, unflatten_dict(short, sep="/"), about)
        return
    with atomic_dir(path) as folder:
        hf_models.write(folder, hf_models.encoder(config), arrays, as_type)
        processor = hf_models.image_processor(config.image_size, preprocessing)
        write_json(folder / "preprocessor_config.json", processor)


def require_params(config, params: Mapping) -> dict[str, np.ndarray]:
    """The parameters by name, on the host, if they are those of `config`."""
    arrays = flatten_dict(params, sep="/")
    shapes = param_shapes(config)
    names = [*shapes, *(name for name in arrays if name not in shapes)]
    found = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    lines = [
        f"{name}: {found.get(name, 'missing')}; expected {shapes.get(name, 'nothing')}"
        for name in names
        if found.get(name) != shapes.get(name)
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(f"params are not those of {config}:\n  {listed}")
    return {name: np.asarray(array) for name, array in arrays.items()}
