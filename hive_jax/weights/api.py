"""Loads and saves single models, in one line each."""

import dataclasses
import logging
import os
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.io import atomic_dir, write_json
from hive_jax.models.config import DecoderConfig, SiglipConfig, TextTowerConfig
from hive_jax.weights import (
    big_vision,
    hf_folder,
    hf_image_processor,
    hf_models,
    sources,
)
from hive_jax.weights.mapping import param_shapes, resize_positions
from hive_jax.weights.safetensors import cast, dtype_named

FORMATS = ("huggingface", "big_vision")

_log = logging.getLogger(__name__)


def load_encoder(path: str, image_size: int | None = None) -> tuple[SiglipConfig, dict]:
    """Loads a SigLIP image tower, for `SiglipEncoder(config).apply({"params": params}, ...)`.

    Args:
      path: a Hugging Face folder or hub id (SigLIP or SigLIP 2 of fixed resolution,
        one tower or two, or a model that contains such a tower), or a big_vision .npz.
      image_size: side of the images in pixels, if it differs from that of the weights;
        the position embedding is resized.

    Returns:
      The configuration and the parameters, float32 NumPy arrays. A warning is logged if
      the images need another preprocessing than the default of `save_encoder` (SigLIP 2,
      big_vision), or the weights do not record any.

    Raises:
      ConfigError: images smaller than a patch.
      MissingInputError: nothing is at `path`, or a file is missing.
      CheckpointError: damaged files, or another model; every tensor that is missing,
        unexpected or of another shape or dtype is listed.
    """
    source = sources.open_encoder(path)
    params = source.params()
    if not source.preprocessing:
        hf_folder.assume_preprocessing(path)
    elif source.preprocessing != "hf_bicubic":
        _log.warning(
            "%s: images are prepared as %r; save_encoder needs preprocessing=%r",
            path,
            source.preprocessing,
            source.preprocessing,
        )
    if image_size is not None and image_size < source.config.patch_size:
        raise ConfigError(
            f"image_size is {image_size}; expected {source.config.patch_size} or more, "
            "the side of a patch"
        )
    if image_size is None:
        return source.config, params
    config = dataclasses.replace(source.config, image_size=image_size)
    position = resize_positions(params["pos_embedding"], config.num_patches)
    return config, params | {"pos_embedding": position}


def load_decoder(
    path: str, config: DecoderConfig | None = None
) -> tuple[DecoderConfig, dict]:
    """Loads a decoder, for `Decoder(config).apply({"params": params}, tokens)`.

    Args:
      path: a Hugging Face folder or hub id (a decoder of FAMILIES, or a model that
        contains one), or a big_vision .npz.
      config: architecture; needed for big_vision's .npz of a Gemma 2, whose arrays do
        not show it (`decoder_config("gemma2_2b")`).

    Returns:
      The configuration and the parameters, float32 NumPy arrays.

    Raises:
      MissingInputError, CheckpointError: as for `load_encoder`.
    """
    source = sources.open_decoder(path, config)
    return source.config, source.params()


def load_two_towers(path: str) -> tuple[SiglipConfig, TextTowerConfig, dict]:
    """Loads both towers of a SigLIP, for `TwoTowers(image, text).apply(...)`.

    `path` is that of `load_encoder`.

    Returns:
      The configurations of both towers and the parameters, float32 NumPy arrays.

    Raises:
      MissingInputError, CheckpointError: as for `load_encoder`.
    """
    source = sources.open_two_towers(path)
    return *source.config, source.params()


def save_encoder(
    path: str | os.PathLike,
    config: SiglipConfig,
    params: Mapping,
    format: str = "huggingface",
    dtype: str = "float32",
    preprocessing: str = "hf_bicubic",
) -> None:
    """Saves an image tower for transformers or big_vision.

    Args:
      path: a folder for `SiglipVisionModel.from_pretrained`, or an .npz file for
        big_vision; must not exist.
      config: architecture.
      params: parameters of `SiglipEncoder(config)`.
      format: "huggingface" or "big_vision".
      dtype: "float32", "bfloat16" or "float16", of the tensors in the files.
      preprocessing: image preprocessing to record; see hive_jax/data/transforms.py.
        transformers has no "bv_bilinear".

    Raises:
      ConfigError: unknown format, dtype or preprocessing.
      CheckpointError: `params` are not those of `config` (all differences are listed),
        or are not finite in `dtype`.
      OutputError: `path` exists or cannot be written; nothing is left behind.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    numpy_dtype = dtype_named(dtype)
    known = list(hf_image_processor.PROCESSORS)
    if format == "big_vision":
        known.append("bv_bilinear")
    if preprocessing not in known:
        raise ConfigError(
            f"preprocessing is {preprocessing!r}; expected one of {', '.join(known)} "
            f"for the format {format!r}"
        )
    arrays = require_params(config, params)
    if format == "big_vision":
        # The configuration, because the arrays do not show the image size exactly.
        metadata = {"img": dataclasses.asdict(config), "preprocessing": preprocessing}
        tensors = {name: cast(name, a, numpy_dtype) for name, a in arrays.items()}
        big_vision.save_npz(path, tensors, metadata)
        return
    with atomic_dir(path) as folder:
        hf_models.write(folder, hf_models.encoder(config), arrays, numpy_dtype)
        processor = hf_image_processor.image_processor(config.image_size, preprocessing)
        write_json(folder / "preprocessor_config.json", processor)


def require_params(config, params: Mapping) -> dict[str, np.ndarray]:
    """Returns the parameters by name, on the host, after comparing them with a config.

    Args:
      config: what `param_shapes` takes.
      params: nested dict of arrays.

    Raises:
      CheckpointError: names or shapes differ; all differences are listed.
    """
    arrays = flatten_dict(params, sep="/")
    shapes = param_shapes(config)
    names = [*shapes, *(name for name in arrays if name not in shapes)]
    actual = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    lines = [
        f"{name}: {actual.get(name, 'missing')}; expected {shapes.get(name, 'nothing')}"
        for name in names
        if actual.get(name) != shapes.get(name)
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(f"params are not those of {config}:\n  {listed}")
    return {name: np.asarray(array) for name, array in arrays.items()}
