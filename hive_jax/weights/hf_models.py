"""Models in Hugging Face's format: config.json and table of tensors for each class.

Files are written in transformers 4's layout, which versions 4.57 and 5 both read.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from hive_jax.errors import CheckpointError
from hive_jax.io import write_json
from hive_jax.models.config import (
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)
from hive_jax.weights import hf_decoder, hf_families, hf_siglip, mapping, safetensors
from hive_jax.weights.hf_decoder import BIAS, EINSUM, EINSUM_OUT
from hive_jax.weights.hf_siglip import dense, prefixed
from hive_jax.weights.mapping import Row, param_shapes


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model in the format of a class of transformers.

    Attributes:
      model: configuration in hive_jax, as `param_shapes` takes it.
      config: content of config.json, without the dtype.
      rows: table of the tensors.
    """

    model: object
    config: dict
    rows: list[mapping.Row]


def encoder(config: SiglipConfig) -> Layout:
    """Returns the layout of SiglipVisionModel."""
    hf = {"architectures": ["SiglipVisionModel"]}
    rows = hf_siglip.vision_rows("", "vision_model.", config.map_head)
    return Layout(config, hf | hf_siglip.vision_config_to_hf(config), rows)


def two_towers(image: SiglipConfig, text: TextTowerConfig) -> Layout:
    """Returns the layout of SiglipModel.

    Args:
      image: architecture of the image tower.
      text: architecture of the text tower.
    """
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
    """Returns the layout of the class of the decoder's family.

    Raises:
      CheckpointError: no class of transformers computes this decoder.
    """
    hf = hf_decoder.config_to_hf(config)
    family = hf_families.FAMILIES[hf["model_type"]]
    hf = {"architectures": [family.architecture]} | hf
    return Layout(config, hf, hf_decoder.rows("", "model.", config))


def vlm(config: HiveConfig, image_token_id: int) -> Layout:
    """Returns the layout of LlavaForConditionalGeneration, of a "self_attention" model.

    The stock class omits a decoder's final soft-cap (Gemma 2): the most likely token is
    the same, its probability is not.

    Args:
      config: architecture of the model.
      image_token_id: token that stands for the patches in the text.

    Raises:
      CheckpointError: a model of another fusion.
    """
    if config.fusion_kind.export_kind != "vlm":
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
        # Counted from the end: -1 is the last block's output, before the final norm.
        "vision_feature_layer": depth - config.encoder.depth - 1,
        "vision_feature_select_strategy": "full",  # SigLIP has no class token to drop
        "projector_hidden_act": "gelu_pytorch_tanh",  # LLaVA's default is the exact GELU
        "multimodal_projector_bias": True,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
    }
    rows = [
        *hf_siglip.vision_rows(
            "img/", "vision_tower.vision_model.", config.encoder.map_head
        ),
        *llava_rows("fusion/", ""),
        *hf_decoder.rows(
            "llm/",
            "language_model.model.",
            config.decoder,
            "language_model.lm_head.weight",
        ),
    ]
    return Layout(config, hf, rows)


def hive(config: HiveConfig) -> Layout:
    """Returns the layout of HiveForConditionalGeneration (hive_jax/export/torch).

    Raises:
      CheckpointError: the fusion is not "hive", "cascaded" or "joint".
    """
    if config.fusion_kind.export_kind != "hive":
        raise CheckpointError(
            f"the model's fusion is {config.fusion!r}; expected 'hive', 'cascaded' or "
            "'joint'. 'self_attention' is exported as 'vlm'"
        )
    code = "modeling_hive.HiveForConditionalGeneration"
    text_config = hf_decoder.config_to_hf(config.decoder)
    hf = {
        "architectures": ["HiveForConditionalGeneration"],
        "model_type": "hive",
        # The classes travel with the folder: transformers has none for HIVE.
        "auto_map": {
            "AutoConfig": "configuration_hive.HiveConfig",
            "AutoModelForCausalLM": code,
            "AutoModelForImageTextToText": code,
        },
        "fusion": config.fusion,
        "connections": [list(pair) for pair in config.resolved_connections()],
        "projector": config.projector_kind,
        "image_kv": config.image_kv,
        "image_rope": config.image_rope,
        "vision_config": hf_siglip.vision_config_to_hf(config.encoder),
        "text_config": text_config,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
    }
    rows = [
        *hf_siglip.vision_rows("img/", "vision_model.", config.encoder.map_head),
        *hive_rows("fusion/", config),
        *hf_decoder.rows("llm/", "language_model.", config.decoder),
    ]
    return Layout(config, hf, rows)


def write(
    folder: Path, layout: Layout, arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, str]:
    """Writes config.json and the tensors of a layout.

    Args:
      folder: an existing folder.
      layout: of the model.
      arrays: parameters of `layout.model` by name.
      dtype: of the tensors.

    Returns:
      The hash of each tensor.

    Raises:
      CheckpointError: a tensor is not finite in `dtype`.
    """
    make, shapes = tensors(layout, arrays, dtype)
    write_json(folder / "config.json", layout.config | {"torch_dtype": dtype.name})
    return safetensors.write_tensors(folder, make, shapes, dtype)


def tensors(
    layout: Layout, arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, tuple[int, ...]]]:
    """Returns functions that make the tensors of a layout, and their shapes, by name.

    Args:
      layout: of the model.
      arrays: parameters of `layout.model` by name.
      dtype: of the tensors.
    """
    tensor_slices = mapping.tensor_slices(layout.rows, param_shapes(layout.model))
    return mapping.make_tensors(tensor_slices, arrays, dtype), mapping.tensor_shapes(
        tensor_slices
    )


def fold_embedding_scale(
    arrays: Mapping[str, np.ndarray], config: HiveConfig, back: bool = False
) -> dict[str, np.ndarray]:
    """Divides the output of a VLM's projector by sqrt(width), for transformers 4.

    For some families (Gemma 1 and 2), transformers 4 multiplies image tokens by
    sqrt(width) like the embeddings of text; hive_jax does not.

    Args:
      arrays: parameters by name.
      config: architecture of the model.
      back: multiply, to undo it.

    Returns:
      The arrays with the projector's last layer scaled; unchanged for other families.
    """
    if not scales_image_tokens(config.decoder):
        return dict(arrays)
    factor = np.float32(config.decoder.width ** (0.5 if back else -0.5))
    last = "fusion/projector/linear_2/"
    return {
        name: array * factor if name.startswith(last) else array
        for name, array in arrays.items()
    }


def scales_image_tokens(config: DecoderConfig) -> bool:
    """Returns whether transformers 4 scales the image tokens of a VLM like its text.

    Raises:
      CheckpointError: no class of transformers computes this decoder.
    """
    family = hf_families.family_of(config)
    return hf_families.FAMILIES[family].scales_image_tokens


def llava_rows(param_prefix: str, hf_prefix: str) -> list[Row]:
    """Returns the table of PrefixFusion's projector, a stack of one.

    Args:
      param_prefix: prefix of the parameter names.
      hf_prefix: prefix of the tensor names.
    """
    rows = []
    for name in ("linear_1", "linear_2"):
        rows += [
            Row(f"{name}/kernel", f"{name}.weight", "O I -> I O", slot=0),
            Row(f"{name}/bias", f"{name}.bias", slot=0),
        ]
    return prefixed(
        rows, f"{param_prefix}projector/", f"{hf_prefix}multi_modal_projector."
    )


def hive_rows(param_prefix: str, config: HiveConfig) -> list[Row]:
    """Returns the table of a fusion: projectors, and the parameters of each connection.

    Names are those of `hive_jax/export/torch/connections_hive.py`, numbered by
    connection.

    Args:
      param_prefix: prefix of the parameter names.
      config: architecture of the model.
    """
    kind = config.projector_kind
    norm = [Row("norm/scale", "norm.weight"), Row("norm/bias", "norm.bias")]
    projector = [*norm] if kind == "ln_mlp" else []
    projector += dense("linear_1", "linear_1")
    if kind != "linear":
        projector += dense("linear_2", "linear_2")
    qk_norms = [
        Row("query_norm/scale", "q_norm.weight"),
        Row("key_norm/scale", "k_norm.weight"),
    ]
    if config.fusion == "joint":
        name, hf_name = "joint_attention", "joint_attentions"
        own = config.image_kv == "own"
        attention = qk_norms + (_kv_rows("kv/", config.decoder.qkv_bias) if own else [])
    else:
        name, hf_name = "cross_attention", "cross_attentions"
        attention = [
            Row("norm/scale", "norm.weight"),
            Row("q_einsum/w", "q_proj.weight", EINSUM),
            *_kv_rows("", bias=False),
            Row("attn_vec_einsum/w", "o_proj.weight", EINSUM_OUT),
            *qk_norms,
            Row("gate", "gate"),
        ]
    return [
        *prefixed(projector, f"{param_prefix}projector/", "projectors.{}."),
        *prefixed(attention, f"{param_prefix}{name}/", hf_name + ".{}."),
    ]


def _kv_rows(prefix: str, bias: bool) -> list[Row]:
    leaves = [("kv_einsum/w", "weight", EINSUM)]
    leaves += [("kv_bias", "bias", BIAS)] if bias else []
    return [
        Row(f"{prefix}{leaf}", f"{projection}.{hf_leaf}", layout, slot=slot)
        for leaf, hf_leaf, layout in leaves
        for slot, projection in enumerate(("k_proj", "v_proj"))
    ]
