"""Opens the models at a path, whatever its format, and checks them before reading.

A path is a Hugging Face folder, a hub id, a big_vision .npz, or "builtin:NAME".
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.errors import CheckpointError
from hive_jax.models.config import (
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)
from hive_jax.weights import (
    big_vision,
    consistency,
    formats,
    hf_config,
    hf_decoder,
    hf_folder,
    hf_models,
    hf_siglip,
    mapping,
    tensor_names,
)
from hive_jax.weights.safetensors import Tensor, open_safetensors

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """A model in files: names, shapes and dtypes are checked, no values are read yet.

    Attributes:
      source: the path, for messages.
      config: SiglipConfig, DecoderConfig, (SiglipConfig, TextTowerConfig), or HiveConfig.
      shapes: shape of each parameter, by name.
      tensor_slices: where each parameter's values are in the files.
      tensors: tensors of the files, by name.
      left_out: tensors of the same files that belong to other components.
      preprocessing: name of the image preprocessing; "" if the files do not record it.
      tokenizer: path, or "builtin:NAME"; "" if there is none.
      exported: whether this project wrote the file, an .npz.
    """

    source: str
    config: SiglipConfig | DecoderConfig | tuple | HiveConfig
    shapes: dict[str, tuple[int, ...]]
    tensor_slices: list[mapping.TensorSlice]
    tensors: Mapping[str, Tensor]
    left_out: list[str]
    preprocessing: str = ""
    tokenizer: str = ""
    exported: bool = False

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields names and float32 arrays, one parameter at a time.

        Raises:
          CheckpointError: at the end, naming all tensors that are damaged.
        """
        return mapping.read_params(self.tensor_slices, self.tensors, self.shapes)

    def params(self) -> dict:
        """Reads all parameters, as the module's `apply` takes them.

        Raises:
          CheckpointError: a tensor is damaged.
        """
        return unflatten_dict(dict(self.leaves()), sep="/")


def open_encoder(path: str) -> WeightSource:
    """Opens the SigLIP image tower at a path.

    Raises:
      MissingInputError: nothing is at `path`, or a file is missing.
      CheckpointError: damaged files, another format, or no image tower that
        `SiglipEncoder` computes; listed are the keys of config.json that contradict the
        tensors, else all tensors that are missing, unexpected or of another shape or dtype.
    """
    folder = hf_folder.locate(path)
    if not folder.is_dir():
        return _open_npz(path, folder, _IMAGE)
    hf = formats.read_config(folder, path)
    config = hf_siglip.vision_config_from_hf(hf_config.vision_config(hf, path), path)
    tensors = _open_tensors(folder, hf, path)
    # The prefix depends on the model and on the version of transformers that saved it.
    prefix = tensor_names.find_prefix(
        tensors, tensor_names.VISION_PREFIXES, "encoder.layers.0."
    )
    nested = "" if hf["model_type"] == "siglip_vision_model" else prefix
    rows = hf_siglip.vision_rows("", prefix, config.map_head)
    sizes = consistency.image_tower_sizes(config, prefix)
    source = _weight_source(path, config, rows, tensors, nested, sizes)
    return dataclasses.replace(
        source, preprocessing=hf_folder.preprocessing(folder, config.image_size)
    )


def open_decoder(path: str, config: DecoderConfig | None = None) -> WeightSource:
    """Opens the decoder at a path.

    Args:
      path: as for `open_encoder`.
      config: architecture, for big_vision's .npz of a Gemma 2 or 3, whose arrays do not
        show it.

    Raises:
      MissingInputError, CheckpointError: as for `open_encoder`.
    """
    folder = hf_folder.locate(path)
    if not folder.is_dir():
        return _open_npz(path, folder, _DECODER, config=config)
    hf = formats.read_config(folder, path)
    config = hf_decoder.config_from_hf(hf_config.decoder_config(hf, path), path)
    tensors = _open_tensors(folder, hf, path)
    prefix = tensor_names.find_prefix(tensors, tensor_names.TEXT_PREFIXES, "layers.0.")
    nested = prefix if {"text_config", "vision_config"} & {*hf} else ""
    unclear = "text_config" in hf and hf.get("tie_word_embeddings") is False
    config, tensors = hf_decoder.resolve_head(config, tensors, prefix, unclear, path)
    rows = hf_decoder.rows("", prefix, config, hf_decoder.head_name(tensors))
    sizes = consistency.decoder_sizes(config, prefix)
    source = _weight_source(path, config, rows, tensors, nested, sizes)
    has_tokenizer = any((folder / name).is_file() for name in hf_folder.TOKENIZER_FILES)
    return dataclasses.replace(
        source, tokenizer=hf_folder.lasting_path(path, folder) if has_tokenizer else ""
    )


def open_two_towers(path: str) -> WeightSource:
    """Opens both SigLIP towers at a path, with temperature and bias.

    Raises:
      MissingInputError, CheckpointError: as for `open_encoder`.
    """
    folder = hf_folder.locate(path)
    if not folder.is_dir():
        return _open_npz(path, folder, _IMAGE, _TEXT)
    hf = formats.read_config(folder, path)
    vision, text = hf_config.two_tower_configs(hf, path)
    config = (
        hf_siglip.vision_config_from_hf(vision, path),
        hf_siglip.text_config_from_hf(text, path),
    )
    rows = hf_models.two_towers(*config).rows
    sizes = [
        *consistency.image_tower_sizes(config[0], "vision_model."),
        *consistency.text_tower_sizes(config[1], "text_model."),
    ]
    tensors = _open_tensors(folder, hf, path)
    source = _weight_source(path, config, rows, tensors, "", sizes)
    return dataclasses.replace(
        source, preprocessing=hf_folder.preprocessing(folder, config[0].image_size)
    )


# Branches of big_vision's trees: name, type of the configuration, and the function that
# reads it from the shapes of the arrays.
_IMAGE = ("img", SiglipConfig, big_vision.vision_config)
_TEXT = ("txt", TextTowerConfig, big_vision.text_config)
_DECODER = ("llm", DecoderConfig, big_vision.decoder_config)


def open_hive(path: str) -> WeightSource:
    """Opens the whole model in a folder of hive_jax.export_hf, "vlm" or "hive".

    Raises:
      MissingInputError, CheckpointError: as for `open_encoder`.
    """
    folder = hf_folder.locate(path)
    hf = formats.read_config(folder, path)
    config = _hive_config(hf, path)
    if config.fusion_kind.export_kind == "vlm":
        # The image token matters to config.json alone, not to the table of tensors.
        layout = hf_models.vlm(config, hf.get("image_token_index", 0))
    else:
        layout = hf_models.hive(config)
    tensors = _open_tensors(folder, hf, path)
    source = _weight_source(path, config, layout.rows, tensors, "")
    return dataclasses.replace(
        source,
        preprocessing=hf_folder.preprocessing(folder, config.encoder.image_size),
        tokenizer=hf_folder.lasting_path(path, folder),
    )


def _hive_config(hf: dict, path: str) -> HiveConfig:
    vision = hf_siglip.vision_config_from_hf(hf_config.vision_config(hf, path), path)
    text = hf_decoder.config_from_hf(hf_config.decoder_config(hf, path), path)
    try:
        if hf["model_type"] == "hive":
            names = ("fusion", "projector", "image_kv", "image_rope")
            values = {name: hf[name] for name in names}
            connections = tuple(map(tuple, hf["connections"]))
        else:
            values = {"fusion": "self_attention"}
            # LLaVA counts hidden states from the end: -1 is the last block.
            connections = ((vision.depth + 1 + hf["vision_feature_layer"], 1),)
        # "cascaded" has its depth from here, and others no deeper connection.
        values["feature_depth"] = max(depth for depth, _ in connections)
        config = HiveConfig(vision, text, connections=connections, **values)
        return config.with_defaults()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: config.json was not written by hive_jax.export_hf: {error}"
        ) from None


def _open_npz(path: str, file: Path, *branches: tuple, config=None) -> WeightSource:
    """Opens one branch of a .npz, or a whole file of several branches.

    The configuration is that of the file's metadata, else the argument, else read from
    the shapes of the arrays. In a file of a single branch, names may lack its prefix.
    """
    tensors, metadata = big_vision.open_npz(file)
    tensors = big_vision.split_qkv(tensors)
    prefix = branches[0][0] + "/"
    is_single = len(branches) == 1
    nested = is_single and any(name.startswith(prefix) for name in tensors)
    configs, source = [], path
    for name, config_type, config_from_shapes in branches:
        if name in metadata:
            configs.append(_config_from_metadata(config_type, metadata[name], path))
        elif config is not None:
            configs.append(config)
        else:
            branch = f"{name}/" if nested or not is_single else ""
            shapes = big_vision.stacked_shapes(tensors, branch, path)
            configs.append(config_from_shapes(shapes))
            names = ", ".join(shapes.used)
            source += f" (configuration read from the shapes of {names})"
    model = configs[0] if is_single else tuple(configs)
    # `source` now tells where the configuration comes from, for the messages below.
    names = consistency.checked_shapes(model, source)
    rows = big_vision.branch_rows(names, prefix if nested else "", tensors)
    weights = _weight_source(source, model, rows, tensors, prefix if nested else "")
    default = _default_preprocessing(prefix, tensors, metadata)
    return dataclasses.replace(
        weights,
        source=path,
        preprocessing=metadata.get("preprocessing", default),
        tokenizer=metadata.get("tokenizer", ""),
        exported=bool(metadata),
    )


def _default_preprocessing(
    prefix: str, tensors: Mapping[str, Tensor], metadata: Mapping
) -> str:
    """Returns the preprocessing of big_vision's own files, which do not record it.

    It is known for SigLIP's towers, but not for PaliGemma's, which come with a decoder.
    """
    with_decoder = any(name.startswith("llm/") for name in tensors)
    is_siglip = prefix == "img/" and not (metadata or with_decoder)
    return "bv_bilinear" if is_siglip else ""


def _config_from_metadata(config_type: type, fields: dict, path: str):
    try:
        return config_type(**fields)
    except TypeError as error:
        raise CheckpointError(
            f"{path}: {big_vision.ABOUT!r} is not of this version: {error}"
        ) from None


def _open_tensors(folder: Path, hf: dict, path: str) -> dict[str, Tensor]:
    formats.require_safetensors(folder)
    tensors = open_safetensors(folder)
    formats.require_float_weights(hf, tensors, path)
    return tensors


def _weight_source(
    path: str, config, rows: list[mapping.Row], tensors, nested: str, sizes=()
) -> WeightSource:
    """Checks everything but the values.

    `nested` is the prefix of the component's names where the same files hold other
    components, else "". `sizes` are those that its config.json states.
    """
    shapes = consistency.checked_shapes(config, path)
    consistency.require_same_sizes(sizes, tensors, path)
    tensor_slices = mapping.tensor_slices(rows, shapes)

    left_out = mapping.require_fit(
        path,
        tensor_slices,
        tensors,
        lambda name: tensor_names.belongs_to_other_component(name, nested),
    )
    if heads := [name for name in left_out if name.startswith(tensor_names.HEADS)]:
        _log.warning("%s: left out the head %s", path, ", ".join(sorted(heads)))
    return WeightSource(path, config, shapes, tensor_slices, tensors, left_out)
