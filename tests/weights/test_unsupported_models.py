"""Configurations of models that we do not have, or that no model can have."""

import json

import pytest
from helpers.tiny_weights import GEMMA3, IMAGE, TEXT, write_folder

from hive_jax.errors import CheckpointError
from hive_jax.weights import (
    hf_models,
    load_decoder,
    load_encoder,
    load_two_towers,
    sources,
)
from hive_jax.weights.components import open_components

UNSUPPORTED = [
    (hf_models.encoder(IMAGE), load_encoder, change, message)
    for change, message in [
        ({"model_type": "bert"}, "model_type is 'bert'; expected one with an image"),
        ({"model_type": "siglip2_vision_model"}, "NaFlex"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'; expected 'gelu_py"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05; expected 1e-06"),
        ({"num_channels": 1}, "num_channels is 1; expected 3"),
        ({"image_size": [8, 16]}, "image_size is"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 10**6}, "image_size is 1000000"),
        ({"num_hidden_layers": -1}, "depth is -1"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3; there are 2 layers"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1; there are 2 layers"),
        ({"hidden_size": 32}, "hidden_size is 32; vision_model.embeddings.patch_emb"),
        ({"patch_size": 2}, "patch_size is 2; vision_model.embeddings.patch_emb"),
        ({"image_size": 16}, "of 16 and 4, is 16; vision_model.embeddings.position_"),
        ({"intermediate_size": 41}, "intermediate_size is 41; vision_model.encoder."),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_attention_heads": 5}, "hidden_size is 24 and num_attention_heads 5"),
        ({"hidden_size": "wide"}, "not a siglip_vision_model configuration"),
        ({"vision_use_head": False}, "unexpected: vision_model.head.probe"),
    ]
]
UNSUPPORTED.append(
    (hf_models.encoder(IMAGE), open_components, {"model_type": "siglip2"}, "NaFlex")
)
UNSUPPORTED += [
    (hf_models.decoder(GEMMA3), load_decoder, change, message)
    for change, message in [
        ({"model_type": "bloom"}, "model_type is 'bloom'; expected one with a decoder"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"attention_bias": True}, "attention_bias is True; expected False"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"use_bidirectional_attention": True}, "expected a causal decoder"),
        (
            {"layer_types": ["full_attention", *["sliding_attention"] * 2]},
            "expected groups of equally many",
        ),
        ({"layer_types": ["sliding_attention"] * 2}, "here"),
        ({"sliding_window_pattern": 0, "layer_types": None}, "not a gemma3_text"),
        ({"sliding_window": 0}, "window is 0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"rope_theta": 0.0}, "rope_base is 0.0"),
        ({"rope_theta": "far"}, "rope_parameters is"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"head_dim": 4}, "num_attention_heads * head_dim is 16; model.layers.0.self_"),
        ({"num_key_value_heads": 2}, "num_key_value_heads * head_dim is 16; model.lay"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads is 4 and num_key_value_heads",
        ),
        (
            {"num_hidden_layers": 6, "layer_types": None},
            "num_hidden_layers is 6; there are 3 layers model.layers.*",
        ),
        ({"num_hidden_layers": 2}, "must be equal to the number of `layer_types`"),
        ({"vocab_size": 60}, "vocab_size is 60; model.embed_tokens.weight is [61, 24]"),
        ({"model_type": "llava", "text_config": {"model_type": "bloom"}}, "'bloom'"),
        (
            {"model_type": "llava", "text_config": [1]},
            "a component's configuration is [1]",
        ),
        (
            {"model_type": "llava", "text_config": None},
            "hidden_size is 4096; model.embed_tokens.weight",
        ),
    ]
]
UNSUPPORTED += [
    (hf_models.two_towers(IMAGE, TEXT), load_encoder, change, message)
    for change, message in [
        ({"image_size": 16}, "image_size is 16 at the top, and 8 in the component's"),
        ({"hidden_size": 32}, "hidden_size is 32 at the top, and 24 in the"),
        ({"vision_config": {"patch_size": 16}}, "hidden_size is 768; vision_model"),
    ]
]
UNSUPPORTED += [
    (hf_models.encoder(IMAGE), load_two_towers, {}, "expected one with two towers"),
    (hf_models.two_towers(IMAGE, TEXT), load_decoder, {}, "one with a decoder"),
]


@pytest.mark.parametrize(("layout", "load", "change", "message"), UNSUPPORTED)
def test_unsupported_or_impossible_configurations_raise(
    tmp_path, layout, load, change, message
):
    path = write_folder(tmp_path / "here", layout)
    file = tmp_path / "here" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert message in str(error.value)
    assert path in str(error.value)


HALVES = [0.5, 0.5, 0.5]
SIGLIP_IMAGES = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": HALVES,
    "image_std": HALVES,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 8, "width": 8},
}


LLAVA = "LlavaImageProcessor"


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"resample": 2}, "hf_bilinear"),
        ({"resample": 3}, "hf_bicubic"),
        ({}, "hf_bicubic"),
        ({"resample": 0}, "resample is 0; expected one of [2, 3]"),
        ({"image_mean": [0.48, 0.46, 0.41]}, "image_mean is [0.48, 0.46, 0.41]"),
        ({"image_std": [1, 1, 1]}, "image_std is [1, 1, 1]"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        (
            {"size": {"height": 16, "width": 16}},
            "expected 8, image_size of config.json",
        ),
        ({"size": {"shortest_edge": 8}}, "hf_bicubic"),
        ({"do_pad": None}, "hf_bicubic"),
        ({"do_pad": True}, "do_pad is True; expected False"),
        ({"do_pad": True, "image_processor_type": LLAVA}, "hf_bicubic_pad"),
        ({"image_processor_type": f"{LLAVA}Fast"}, "hf_bicubic"),
    ],
)
@pytest.mark.parametrize("version", [4, 5])
def test_preprocessing_is_recognized_or_rejected(tmp_path, version, change, result):
    """Of the file of an image processor, and of version 5's for a whole processor."""
    path = write_folder(tmp_path, hf_models.encoder(IMAGE))
    content = SIGLIP_IMAGES | change
    if version == 5:
        content = {"image_processor": content, "processor_class": "SiglipProcessor"}
    name = "preprocessor_config.json" if version == 4 else "processor_config.json"
    (tmp_path / name).write_text(json.dumps(content))
    if result.startswith("hf_"):
        assert sources.open_encoder(path).preprocessing == result
        return
    with pytest.raises(CheckpointError) as error:
        load_encoder(path)
    assert result in str(error.value)
    assert name in str(error.value)
