"""What each part of a model is in Hugging Face's format: its config.json and tables.

The files are in transformers 4's layout, which versions 4.57 and 5 both read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hive_jax.errors import CheckpointError
from hive_jax.io import write_json
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.weights import hf_decoder, hf_siglip, mapping, safetensors
from hive_jax.weights.hf_decoder import EINSUM, EINSUM_OUT
from hive_jax.weights.hf_siglip import dense, prefixed
from hive_jax.weights.mapping import Row, param_shapes

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
    rows: list[mapping.Row]


def encoder(config: SiglipConfig) -> Layout:
    """SiglipVisionModel."""
    hf = {"architectures": ["SiglipVisionModel"]}
    rows = hf_siglip.vision_rows("", "vision_model.", config.map_head)
    return Layout(config, hf | hf_siglip.vision_config_to_hf(config), rows)


def two_towers(image: SiglipConfig, text: TextTowerConfig) -> Layout:
    """SiglipModel."""
    hf = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": hf_siglip.vision_config_to_hf(image),
        "text_config": hf_siglip.text_config_to_hf(text),
    }
    rows = [
        *hf_siglip.vision_rows("img/", "vision_model.", image.map_head),
        *hf_siglip.text_rows("txt/", "text_model."),
        *hf_siglip.SCALARS,
    ]
    return Layout((image, text), hf, rows)


def decoder(config: DecoderConfig) -> Layout:
    """The class of the decoder's family."""
    hf = hf_decoder.config_to_hf(config)
    family = hf_decoder.FAMILIES[hf["model_type"]]
    hf = {"architectures": [family.architecture]} | hf
    return Layout(config, hf, hf_decoder.rows("", "model.", config))


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
    hf = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": hf_siglip.vision_config_to_hf(config.encoder),
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
        *hf_siglip.vision_rows(
            "img/", "vision_tower.vision_model.", config.encoder.map_head
        ),
        *llava_rows("fusion/", ""),
        *hf_decoder.rows("llm/", "language_model.model.", config.decoder),
    ]
    return Layout(config, hf, rows)


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
    hf = {
        "architectures": ["HiveForConditionalGeneration"],
        "model_type": "hive",
        "auto_map": {
            "AutoConfig": "configuration_hive.HiveConfig",
            "AutoModelForCausalLM": code,
            "AutoModelForImageTextToText": code,
        },
        "fusion": config.fusion,
        "connections": [list(pair) for pair in config.resolved_connections()],
        "vision_config": hf_siglip.vision_config_to_hf(config.encoder),
        "text_config": text_config,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
    }
    rows = [
        *hf_siglip.vision_rows("img/", "vision_model.", config.encoder.map_head),
        *hive_rows("fusion/"),
        *hf_decoder.rows("llm/", "language_model.", config.decoder),
    ]
    return Layout(config, hf, rows)


def write(
    folder: Path, layout: Layout, arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, str]:
    """Writes config.json and the tensors of a layout; returns the tensors' hashes.

    Args:
      arrays: our parameters by name, those of `layout.model`.
    """
    make, shapes = tensors(layout, arrays, dtype)
    write_json(folder / "config.json", layout.config | {"torch_dtype": dtype.name})
    return safetensors.write_tensors(folder, make, shapes, dtype)


def tensors(layout: Layout, arrays: Mapping[str, np.ndarray], dtype: np.dtype):
    """Their tensors of a layout: functions that make them, and shapes, by name."""
    tensor_slices = mapping.tensor_slices(layout.rows, param_shapes(layout.model))
    return mapping.make_tensors(tensor_slices, arrays, dtype), mapping.tensor_shapes(
        tensor_slices
    )


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


def llava_rows(param_prefix: str, hf_prefix: str) -> list[Row]:
    """The one projector of PrefixFusion, a stack of one."""
    rows = []
    for name in ("linear_1", "linear_2"):
        rows += [
            Row(f"{name}/kernel", f"{name}.weight", "O I -> I O", slot=0),
            Row(f"{name}/bias", f"{name}.bias", slot=0),
        ]
    return prefixed(
        rows, f"{param_prefix}projector/", f"{hf_prefix}multi_modal_projector."
    )


def hive_rows(param_prefix: str) -> list[Row]:
    """Projectors and cross-attention blocks of "hive" and "cascaded", numbered by
    connection, as `hive_jax/export/torch/modeling_hive.py` names them."""
    projector = [
        Row("norm/scale", "norm.weight"),
        Row("norm/bias", "norm.bias"),
        *dense("linear_1", "linear_1"),
        *dense("linear_2", "linear_2"),
    ]
    attention = [
        Row("norm/scale", "norm.weight"),
        Row("q_einsum/w", "q_proj.weight", EINSUM),
        Row("kv_einsum/w", "k_proj.weight", EINSUM, slot=0),
        Row("kv_einsum/w", "v_proj.weight", EINSUM, slot=1),
        Row("attn_vec_einsum/w", "o_proj.weight", EINSUM_OUT),
        Row("query_norm/scale", "q_norm.weight"),
        Row("key_norm/scale", "k_norm.weight"),
        Row("gate", "gate"),
    ]
    return [
        *prefixed(projector, f"{param_prefix}projector/", "projectors.{}."),
        *prefixed(attention, f"{param_prefix}cross_attention/", "cross_attentions.{}."),
    ]
