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
from hive_jax.models.gemma import GemmaConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.weights import big_vision, folder, gemma, huggingface, siglip, table
from hive_jax.weights.names import checked_shapes
from hive_jax.weights.tensors import Tensor, open_safetensors, read_json

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
class Part:
    """A model at a path: all its tensors are there and fit, and none is read yet.

    Attributes:
      config: SiglipConfig, GemmaConfig, (SiglipConfig, TextTowerConfig), or HiveConfig.
      left_out: tensors of the same files that belong to other parts.
      preprocessing: name of the image preprocessing; "" if the source says nothing.
      tokenizer: path, or "builtin:NAME"; "" if the source has none.
    """

    source: str
    config: SiglipConfig | GemmaConfig | tuple | HiveConfig
    shapes: dict[str, tuple[int, ...]]
    pieces: list[table.Piece]
    tensors: Mapping[str, Tensor]
    left_out: list[str]
    preprocessing: str = ""
    tokenizer: str = ""

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and float32 arrays. CheckpointError at the end names what is damaged."""
        return table.to_ours(self.pieces, self.tensors, self.shapes)

    def params(self) -> dict:
        """All leaves, as the module's `apply` takes them."""
        return unflatten_dict(dict(self.leaves()), sep="/")


def open_encoder(path: str) -> Part:
    """The SigLIP image tower at a path.

    Raises:
      MissingInputError: there is nothing, or a part of it is missing.
      CheckpointError: damaged files, or no image tower that we compute; all tensors
        that are missing, unexpected or of another shape or dtype are listed.
    """
    where = folder.locate(path)
    if not where.is_dir():
        return _from_npz(path, where, _IMAGE)
    config = read_json(where / "config.json")
    found = siglip.vision_config(folder.vision_part(config, path), path)
    tensors = open_safetensors(where)
    prefix = _prefix(tensors, _VISION_PREFIXES, "encoder.layers.0.")
    nested = "" if config["model_type"] == "siglip_vision_model" else prefix
    rows = siglip.vision_rows("", prefix, found.map_head)
    part = _part(path, found, rows, tensors, nested)
    return dataclasses.replace(part, preprocessing=folder.preprocessing(where))


def open_decoder(path: str, config: GemmaConfig | None = None) -> Part:
    """The Gemma at a path; errors as `open_encoder`.

    Args:
      config: what the decoder is, for a .npz of a Gemma 2 or 3, whose arrays do not
        show it.
    """
    where = folder.locate(path)
    if not where.is_dir():
        return _from_npz(path, where, _DECODER, config=config)
    theirs = read_json(where / "config.json")
    found = gemma.decoder_config(folder.text_part(theirs, path), path)
    tensors = open_safetensors(where)
    prefix = _prefix(tensors, _TEXT_PREFIXES, "layers.0.")
    head = next((name for name in tensors if name.endswith("lm_head.weight")), "")
    if head:
        _require_tied(path, tensors[head], tensors.get(f"{prefix}embed_tokens.weight"))
    nested = prefix if "text_config" in theirs else ""
    tensors = {name: tensor for name, tensor in tensors.items() if name != head}
    part = _part(path, found, gemma.decoder_rows("", prefix, found), tensors, nested)
    has_tokenizer = any((where / name).is_file() for name in folder.TOKENIZER_FILES)
    return dataclasses.replace(part, tokenizer=str(where) if has_tokenizer else "")


def open_two_towers(path: str) -> Part:
    """Both SigLIP towers at a path, with temperature and bias; errors as
    `open_encoder`."""
    where = folder.locate(path)
    if not where.is_dir():
        return _from_npz(path, where, _IMAGE, _TEXT)
    vision, text = folder.two_tower_parts(read_json(where / "config.json"), path)
    found = siglip.vision_config(vision, path), siglip.text_config(text, path)
    rows = [
        *siglip.vision_rows("img/", "vision_model.", found[0].map_head),
        *siglip.text_rows("txt/", "text_model."),
        *siglip.SCALARS,
    ]
    part = _part(path, found, rows, open_safetensors(where), "")
    return dataclasses.replace(part, preprocessing=folder.preprocessing(where))


_IMAGE = ("img", SiglipConfig, big_vision.vision_config)
_TEXT = ("txt", TextTowerConfig, big_vision.text_config)
_DECODER = ("llm", GemmaConfig, big_vision.decoder_config)


def open_hive(path: str) -> Part:
    """The whole model in a folder of `tools/export_hf.py`, "vlm" or "hive"; errors as
    `open_encoder`."""
    where = folder.locate(path)
    theirs = read_json(where / "config.json")
    found = _hive_config(theirs, path)
    if found.fusion == "self_attention":
        # The token is in the configuration alone, and no part of the tables.
        layout = huggingface.vlm(found, theirs.get("image_token_index", 0))
    else:
        layout = huggingface.hive(found)
    part = _part(path, found, layout.rows, open_safetensors(where), "")
    return dataclasses.replace(
        part, preprocessing=folder.preprocessing(where), tokenizer=str(where)
    )


def _hive_config(theirs: dict, path: str) -> HiveConfig:
    vision = siglip.vision_config(folder.vision_part(theirs, path), path)
    text = gemma.decoder_config(folder.text_part(theirs, path), path)
    try:
        if theirs["model_type"] == "hive":
            fusion = theirs["fusion"]
            connections = tuple(map(tuple, theirs["connections"]))
        else:
            fusion = "self_attention"
            connections = ((vision.depth + 1 + theirs["vision_feature_layer"], 1),)
        found = HiveConfig(vision, text, fusion, connections)
        return dataclasses.replace(found, connections=found.resolved_connections())
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: config.json is not one of tools/export_hf.py: {error}"
        ) from None


def _from_npz(path: str, where: Path, *branches: tuple, config=None) -> Part:
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
    part = _part(source, found, rows, tensors, first if nested else "")
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


def _part(path: str, config, rows: list[table.Row], tensors, nested: str) -> Part:
    """Checks everything but the values. `nested` is what the part's names begin with
    where other parts are beside it, else ""."""
    shapes = checked_shapes(config, path)
    pieces = table.pieces(rows, shapes)

    def beside(name: str) -> bool:
        # The connector of PaliGemma's image tower, or a classifier of big_vision's.
        if name.startswith(("img/head/", "head/")) or name.endswith(_BUFFERS):
            return True
        begins = _begins(name.removeprefix("model."))
        return not name.startswith(nested) and begins in _OTHER_PARTS

    left_out = table.require_fit(path, pieces, tensors, beside)
    return Part(path, config, shapes, pieces, tensors, left_out)


def _begins(name: str) -> str:
    """ "a.b.c" -> "a.", "a/b" -> "a/", "a" -> "a"."""
    return re.match(r"[^./]*[./]?", name)[0]


def _prefix(tensors: Mapping[str, Tensor], known: tuple[str, ...], first: str) -> str:
    """Which of the known prefixes the names have; the first one if none does."""
    return next(
        (p for p in known if any(name.startswith(p + first) for name in tensors)),
        known[0],
    )


def _require_tied(path: str, head: Tensor, table_: Tensor | None) -> None:
    if table_ is not None and not np.array_equal(head.read(), table_.read()):
        raise CheckpointError(
            f"{path}: lm_head.weight is not the embedding table; expected tied weights"
        )
