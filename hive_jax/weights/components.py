"""Finds out which components the files at a path hold, and opens them."""

from pathlib import Path

from hive_jax.errors import CheckpointError
from hive_jax.weights import big_vision, formats, hf_folder
from hive_jax.weights.sources import (
    WeightSource,
    open_decoder,
    open_encoder,
    open_hive,
    open_two_towers,
)


def open_components(path: str) -> dict[str, WeightSource]:
    """Opens every component at a path.

    Returns:
      Component -> source: "hive", "vlm" or "two_towers" alone, which is the whole model;
      or "encoder", "decoder", or both (PaliGemma, Gemma 3).

    Raises:
      MissingInputError: nothing is at `path`, or its config.json is missing.
      CheckpointError: no encoder or decoder of a known family, or damaged files.
    """
    local = hf_folder.locate(path)
    if local.is_dir():
        names = _components_of_folder(local, path)
    else:
        names = _components_of_npz(local)
    openers = {
        "encoder": open_encoder,
        "two_towers": open_two_towers,
        "decoder": open_decoder,
        "vlm": open_hive,
        "hive": open_hive,
    }
    return {name: openers[name](path) for name in names}


def _components_of_folder(folder: Path, path: str) -> tuple[str, ...]:
    hf = formats.read_config(folder, path)
    components = {
        "siglip": ("two_towers",),
        "siglip_vision_model": ("encoder",),
        "llava": ("vlm",),
        "hive": ("hive",),
        "paligemma": ("encoder", "decoder"),
        "gemma3": ("encoder", "decoder"),
        **dict.fromkeys(hf_folder.DECODER_ALONE, ("decoder",)),
    }
    model_type = hf.get("model_type")
    if hf.get("architectures") == ["SiglipForImageClassification"]:
        return ("encoder",)  # of the type of two towers, and without the text tower
    if model_type not in components:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}; expected the workdir of a run, or a "
            f"model of type {', '.join(components)}{hf_folder.explain_type(model_type)}"
        )
    return components[model_type]


def _components_of_npz(file: Path) -> tuple[str, ...]:
    branches = {name.partition("/")[0] for name in big_vision.open_npz(file)[0]}
    if {"img", "txt"} <= branches:
        return ("two_towers",)
    has = {
        "encoder": "img" in branches or "pos_embedding" in branches,
        "decoder": "llm" in branches or "embedder" in branches,
    }
    components = tuple(name for name, present in has.items() if present)
    if not components:
        raise CheckpointError(
            f"{file} has no parameter of an encoder (img/...) or a decoder (llm/...)"
        )
    return components
