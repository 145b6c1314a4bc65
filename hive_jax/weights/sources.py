"""Models found at a path, whatever its format: checked whole, then read leaf by leaf.

A path is a Hugging Face folder, a hub id, a big_vision .npz, or "builtin:NAME".
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.errors import CheckpointError
from hive_jax.io import read_json
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.weights import (
    big_vision,
    hf_decoder,
    hf_folder,
    hf_models,
    hf_siglip,
    mapping,
)
from hive_jax.weights.mapping import checked_shapes
from hive_jax.weights.safetensors import Tensor, open_safetensors

# What the names of each part begin with, in the models and versions that hold it.
_VISION_PREFIXES = (
    "vision_model.",
    "",
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
)
_TEXT_PREFIXES = (
    "model.",
    "",
    "language_model.model.",
    "language_model.",
    "model.language_model.",
)
# What the names of other parts of such models begin with.
_OTHER_PARTS = (
    *("vision_model.", "text_model.", "logit_scale", "logit_bias"),
    *("vision_tower.", "language_model.", "multi_modal_projector.", "lm_head."),
    *("projectors.", "cross_attentions."),
    *("img/", "txt/", "llm/", "fusion/", "t", "b"),
)
# Tables of constants that older versions of transformers stored beside the weights.
_BUFFERS = ("position_ids", "rotary_emb.inv_freq")


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """A model at a path: all its tensors are there and fit, and none is read yet.

    Attributes:
      config: SiglipConfig, DecoderConfig, (SiglipConfig, TextTowerConfig), or HiveConfig.
      left_out: tensors of the same files that belong to other parts.
      preprocessing: name of the image preprocessing; "" if the source says nothing.
      tokenizer: path, or "builtin:NAME"; "" if the source has none.
    """

    source: str
    config: SiglipConfig | DecoderConfig | tuple | HiveConfig
    shapes: dict[str, tuple[int, ...]]
    tensor_slices: list[mapping.TensorSlice]
    tensors: Mapping[str, Tensor]
    left_out: list[str]
    preprocessing: str = ""
    tokenizer: str = ""

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and float32 arrays. CheckpointError at the end names what is damaged."""
        return mapping.read_params(self.tensor_slices, self.tensors, self.shapes)

    def params(self) -> dict:
        """All leaves, as the module's `apply` takes them."""
        return unflatten_dict(dict(self.leaves()), sep="/")


def open_encoder(path: str) -> WeightSource:
    """The SigLIP image tower at a path.

    Raises:
      MissingInputError: there is nothing, or a part of it is missing.
      CheckpointError: damaged files, or no image tower that we compute; all tensors
        that are missing, unexpected or of another shape or dtype are listed.
    """
    where = hf_folder.locate(path)
    if not where.is_dir():
        return _from_npz(path, where, _IMAGE)
    config = read_json(where / "config.json", error=CheckpointError)
    found = hf_siglip.vision_config_from_hf(hf_folder.vision_part(config, path), path)
    tensors = open_safetensors(where)
    prefix = _prefix(tensors, _VISION_PREFIXES, "encoder.layers.0.")
    nested = "" if config["model_type"] == "siglip_vision_model" else prefix
    rows = hf_siglip.vision_rows("", prefix, found.map_head)
    part = _weight_source(path, found, rows, tensors, nested)
    return dataclasses.replace(part, preprocessing=hf_folder.preprocessing(where))


def open_decoder(path: str, config: DecoderConfig | None = None) -> WeightSource:
    """The Gemma at a path; errors as `open_encoder`.

    Args:
      config: what the decoder is, for a .npz of a Gemma 2 or 3, whose arrays do not
        show it.
    """
    where = hf_folder.locate(path)
    if not where.is_dir():
        return _from_npz(path, where, _DECODER, config=config)
    hf = read_json(where / "config.json", error=CheckpointError)
    found = hf_decoder.config_from_hf(hf_folder.text_part(hf, path), path)
    tensors = open_safetensors(where)
    prefix = _prefix(tensors, _TEXT_PREFIXES, "layers.0.")
    nested = prefix if "text_config" in hf else ""
    tensors = hf_decoder.without_tied_head(tensors, prefix, found, path)
    part = _weight_source(
        path, found, hf_decoder.rows("", prefix, found), tensors, nested
    )
    has_tokenizer = any((where / name).is_file() for name in hf_folder.TOKENIZER_FILES)
    return dataclasses.replace(part, tokenizer=str(where) if has_tokenizer else "")


def open_two_towers(path: str) -> WeightSource:
    """Both SigLIP towers at a path, with temperature and bias; errors as
    `open_encoder`."""
    where = hf_folder.locate(path)
    if not where.is_dir():
        return _from_npz(path, where, _IMAGE, _TEXT)
    vision, text = hf_folder.two_tower_parts(
        read_json(where / "config.json", error=CheckpointError), path
    )
    found = (
        hf_siglip.vision_config_from_hf(vision, path),
        hf_siglip.text_config_from_hf(text, path),
    )
    rows = [
        *hf_siglip.vision_rows("img/", "vision_model.", found[0].map_head),
        *hf_siglip.text_rows("txt/", "text_model."),
        *hf_siglip.SCALARS,
    ]
    part = _weight_source(path, found, rows, open_safetensors(where), "")
    return dataclasses.replace(part, preprocessing=hf_folder.preprocessing(where))


_IMAGE = ("img", SiglipConfig, big_vision.vision_config)
_TEXT = ("txt", TextTowerConfig, big_vision.text_config)
_DECODER = ("llm", DecoderConfig, big_vision.decoder_config)


def open_hive(path: str) -> WeightSource:
    """The whole model in a folder of `tools/export_hf.py`, "vlm" or "hive"; errors as
    `open_encoder`."""
    where = hf_folder.locate(path)
    hf = read_json(where / "config.json", error=CheckpointError)
    found = _hive_config(hf, path)
    if found.fusion_class.export_kind == "vlm":
        # The token is in the configuration alone, and no part of the tables.
        layout = hf_models.vlm(found, hf.get("image_token_index", 0))
    else:
        layout = hf_models.hive(found)
    part = _weight_source(path, found, layout.rows, open_safetensors(where), "")
    return dataclasses.replace(
        part, preprocessing=hf_folder.preprocessing(where), tokenizer=str(where)
    )


def _hive_config(hf: dict, path: str) -> HiveConfig:
    vision = hf_siglip.vision_config_from_hf(hf_folder.vision_part(hf, path), path)
    text = hf_decoder.config_from_hf(hf_folder.text_part(hf, path), path)
    try:
        if hf["model_type"] == "hive":
            fusion = hf["fusion"]
            connections = tuple(map(tuple, hf["connections"]))
        else:
            fusion = "self_attention"
            connections = ((vision.depth + 1 + hf["vision_feature_layer"], 1),)
        found = HiveConfig(vision, text, fusion, connections)
        return dataclasses.replace(found, connections=found.resolved_connections())
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: config.json is not one of tools/export_hf.py: {error}"
        ) from None


def _from_npz(path: str, where: Path, *branches: tuple, config=None) -> WeightSource:
    """One branch of a .npz, or the whole of a file of several.

    The configuration is the one in the file, else the argument, else what the arrays
    show. The names of a single branch may lack its own.
    """
    tensors, about = big_vision.open_npz(where)
    tensors = big_vision.apart(tensors)
    first = branches[0][0] + "/"
    alone = len(branches) == 1
    nested = alone and any(name.startswith(first) for name in tensors)
    configs, source = [], path
    for name, kind, read in branches:
        if name in about:
            configs.append(_from_about(kind, about[name], path))
        elif config is not None:
            configs.append(config)
        else:
            prefix = f"{name}/" if nested or not alone else ""
            shapes = big_vision.stacked_shapes(tensors, prefix, path)
            configs.append(read(shapes))
            names = ", ".join(shapes.used)
            source += f" (configuration read from the shapes of {names})"
    found = configs[0] if alone else tuple(configs)
    names = checked_shapes(found, source)
    rows = big_vision.rows(names, first if nested else "", tensors)
    part = _weight_source(source, found, rows, tensors, first if nested else "")
    return dataclasses.replace(
        part,
        source=path,
        preprocessing=about.get("preprocessing", _unsaid(first, tensors, about)),
        tokenizer=about.get("tokenizer", ""),
    )


def _unsaid(first: str, tensors: Mapping[str, Tensor], about: Mapping) -> str:
    """The preprocessing of big_vision's own files, which say nothing: that of SigLIP's
    towers. PaliGemma's, beside a decoder, had another, which is unknown here."""
    with_decoder = any(name.startswith("llm/") for name in tensors)
    return "bv_bilinear" if first == "img/" and not (about or with_decoder) else ""


def _from_about(kind: type, fields: dict, path: str):
    try:
        return kind(**fields)
    except TypeError as error:
        raise CheckpointError(
            f"{path}: {big_vision.ABOUT!r} in it is not of this version: {error}"
        ) from None


def _weight_source(
    path: str, config, rows: list[mapping.Row], tensors, nested: str
) -> WeightSource:
    """Checks everything but the values. `nested` is what the part's names begin with
    where other components are in the same files, else ""."""
    shapes = checked_shapes(config, path)
    tensor_slices = mapping.tensor_slices(rows, shapes)

    def belongs_to_other_component(name: str) -> bool:
        # The connector of PaliGemma's image tower, or a classifier of big_vision's.
        if name.startswith(("img/head/", "head/")) or name.endswith(_BUFFERS):
            return True
        begins = _begins(name.removeprefix("model."))
        return not name.startswith(nested) and begins in _OTHER_PARTS

    left_out = mapping.require_fit(
        path, tensor_slices, tensors, belongs_to_other_component
    )
    return WeightSource(path, config, shapes, tensor_slices, tensors, left_out)


def _begins(name: str) -> str:
    """ "a.b.c" -> "a.", "a/b" -> "a/", "a" -> "a"."""
    return re.match(r"[^./]*[./]?", name)[0]


def _prefix(tensors: Mapping[str, Tensor], known: tuple[str, ...], first: str) -> str:
    """Which of the known prefixes the names have; the first one if none does."""
    return next(
        (p for p in known if any(name.startswith(p + first) for name in tensors)),
        known[0],
    )


def open_components(path: str) -> dict[str, WeightSource]:
    """Opens all that a path holds: component -> its source, as the functions above.

    One of "hive", "vlm" or "two_towers" is the whole model; else "encoder", "decoder",
    or both (PaliGemma, Gemma 3).

    Raises:
      MissingInputError: nothing is at `path`, or its config.json is missing.
      CheckpointError: no encoder or decoder of a known family, or damaged files.
    """
    where = hf_folder.locate(path)
    names = _components_of_folder(where, path) if where.is_dir() else _in_npz(where)
    openers = {
        "encoder": open_encoder,
        "two_towers": open_two_towers,
        "decoder": open_decoder,
        "vlm": open_hive,
        "hive": open_hive,
    }
    return {name: openers[name](path) for name in names}


def _components_of_folder(folder: Path, path: str) -> tuple[str, ...]:
    hf = read_json(folder / "config.json", error=CheckpointError)
    components = {
        "siglip": ("two_towers",),
        "siglip_vision_model": ("encoder",),
        "llava": ("vlm",),
        "hive": ("hive",),
        "paligemma": ("encoder", "decoder"),
        "gemma3": ("encoder", "decoder"),
        **dict.fromkeys(hf_decoder.FAMILIES, ("decoder",)),
    }
    model_type = hf.get("model_type")
    if model_type not in components:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}; expected the workdir of a run, or a "
            f"model of type {', '.join(components)}"
        )
    return components[model_type]


def _in_npz(file: Path) -> tuple[str, ...]:
    branches = {name.partition("/")[0] for name in big_vision.open_npz(file)[0]}
    if {"img", "txt"} <= branches:
        return ("two_towers",)
    is_there = {
        "encoder": "img" in branches or "pos_embedding" in branches,
        "decoder": "llm" in branches or "embedder" in branches,
    }
    components = tuple(name for name, there in is_there.items() if there)
    if not components:
        raise CheckpointError(
            f"{file} has no parameter of an encoder (img/...) or a decoder (llm/...)"
        )
    return components
