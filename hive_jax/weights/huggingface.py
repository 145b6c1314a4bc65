"""What each part of a model is in Hugging Face's format: its config.json and tables.

The files are in transformers 4's layout, which versions 4.57 and 5 both read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hive_jax.errors import CheckpointError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.weights import fusion, hf_decoder, siglip, table, writing
from hive_jax.weights.names import param_shapes

# What a preprocessor_config.json says of each preprocessing that transformers has.
_PAD = {
    "image_processor_type": "LlavaImageProcessor",
    "do_pad": True,
    "do_center_crop": False,
}
PROCESSORS = {
    "hf_bicubic": {"resample": 3},
    "hf_bilinear": {"resample": 2},
    "hf_bicubic_pad": {"resample": 3, **_PAD},
    "hf_bilinear_pad": {"resample": 2, **_PAD},
}
# Its nearest to the one that it has not: its own filters all antialias.
_NEAREST = {"bv_bilinear": "hf_bilinear"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model as a class of transformers has it.

    Attributes:
      model: our configuration; what `param_shapes` takes.
      config: the content of config.json, without the dtype.
      rows: the table of its tensors.
    """

    model: object
    config: dict
    rows: list[table.Row]


def encoder(config: SiglipConfig) -> Layout:
    """SiglipVisionModel."""
    theirs = {"architectures": ["SiglipVisionModel"]}
    rows = siglip.vision_rows("", "vision_model.", config.map_head)
    return Layout(config, theirs | siglip.their_vision_config(config), rows)


def two_towers(image: SiglipConfig, text: TextTowerConfig) -> Layout:
    """SiglipModel."""
    theirs = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": siglip.their_vision_config(image),
        "text_config": siglip.their_text_config(text),
    }
    rows = [
        *siglip.vision_rows("img/", "vision_model.", image.map_head),
        *siglip.text_rows("txt/", "text_model."),
        *siglip.SCALARS,
    ]
    return Layout((image, text), theirs, rows)


def decoder(config: DecoderConfig) -> Layout:
    """The class of the decoder's family."""
    theirs = hf_decoder.config_to_hf(config)
    family = hf_decoder.FAMILIES[theirs["model_type"]]
    theirs = {"architectures": [family.architecture]} | theirs
    return Layout(config, theirs, hf_decoder.rows("", "model.", config))


def vlm(config: HiveConfig, image_token_id: int) -> Layout:
    """LlavaForConditionalGeneration, of a "self_attention" model.

    The stock class leaves out a decoder's final soft-cap (Gemma 2): the likeliest token
    is the same, its probability is not.

    Raises:
      CheckpointError: it is of another fusion.
    """
    if config.fusion_class.export_kind != "vlm":
        raise CheckpointError(
            f"the model's fusion is {config.fusion!r}; only 'self_attention' is a "
            "LLaVA. Export this one as 'hive', or its encoder alone"
        )
    depth = config.resolved_connections()[0][0]
    text_config = hf_decoder.config_to_hf(config.decoder)
    theirs = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": siglip.their_vision_config(config.encoder),
        "text_config": text_config,
        "image_token_index": image_token_id,
        "image_seq_length": config.encoder.num_patches,
        "vision_feature_layer": depth - config.encoder.depth - 1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu_pytorch_tanh",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
    }
    rows = [
        *siglip.vision_rows(
            "img/", "vision_tower.vision_model.", config.encoder.map_head
        ),
        *fusion.llava_rows("fusion/", ""),
        *hf_decoder.rows("llm/", "language_model.model.", config.decoder),
    ]
    return Layout(config, theirs, rows)


def hive(config: HiveConfig) -> Layout:
    """HiveForConditionalGeneration of hive_jax/export/torch, "hive" or "cascaded".

    Raises:
      CheckpointError: it is of another fusion.
    """
    if config.fusion_class.export_kind != "hive":
        raise CheckpointError(
            f"the model's fusion is {config.fusion!r}; expected 'hive' or 'cascaded'. "
            "'self_attention' is exported as 'vlm'"
        )
    code = "modeling_hive.HiveForConditionalGeneration"
    text_config = hf_decoder.config_to_hf(config.decoder)
    theirs = {
        "architectures": ["HiveForConditionalGeneration"],
        "model_type": "hive",
        "auto_map": {
            "AutoConfig": "configuration_hive.HiveConfig",
            "AutoModelForCausalLM": code,
            "AutoModelForImageTextToText": code,
        },
        "fusion": config.fusion,
        "connections": [list(pair) for pair in config.resolved_connections()],
        "vision_config": siglip.their_vision_config(config.encoder),
        "text_config": text_config,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
    }
    rows = [
        *siglip.vision_rows("img/", "vision_model.", config.encoder.map_head),
        *fusion.hive_rows("fusion/"),
        *hf_decoder.rows("llm/", "language_model.", config.decoder),
    ]
    return Layout(config, theirs, rows)


def write(
    folder: Path, layout: Layout, arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, str]:
    """Writes config.json and the tensors of a layout; returns the tensors' hashes.

    Args:
      arrays: our parameters by name, those of `layout.model`.
    """
    make, shapes = tensors(layout, arrays, dtype)
    writing.write_json(
        folder / "config.json", layout.config | {"torch_dtype": dtype.name}
    )
    return writing.write_tensors(folder, make, shapes, dtype)


def tensors(layout: Layout, arrays: Mapping[str, np.ndarray], dtype: np.dtype):
    """Their tensors of a layout: functions that make them, and shapes, by name."""
    pieces = table.pieces(layout.rows, param_shapes(layout.model))
    return table.to_theirs(pieces, arrays, dtype), table.their_shapes(pieces)


def nearest_preprocessing(preprocessing: str) -> str:
    """The same one, or the most similar that transformers has."""
    return _NEAREST.get(preprocessing, preprocessing)


def image_processor(image_size: int, preprocessing: str, processor: str = "") -> dict:
    """The content of preprocessor_config.json.

    Args:
      preprocessing: a key of PROCESSORS.
      processor: class of the whole processor, where there is one.
    """
    return {
        "image_processor_type": "SiglipImageProcessor",
        **({"processor_class": processor} if processor else {}),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        **PROCESSORS[preprocessing],
    }


def fold_embedding_scale(
    arrays: Mapping[str, np.ndarray], config: HiveConfig, back: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of a vlm for transformers 4, which multiplies the image's tokens by
    sqrt(width) as well for some families (Gemma 1 and 2): the projector's last layer
    is divided by that, or multiplied on the way `back`. Others are returned as they
    are."""
    family = hf_decoder.family_of(config.decoder)
    if not hf_decoder.FAMILIES[family].scales_image_tokens:
        return dict(arrays)
    factor = np.float32(config.decoder.width ** (0.5 if back else -0.5))
    last = "fusion/projector/linear_2/"
    return {
        name: array * factor if name.startswith(last) else array
        for name, array in arrays.items()
    }
