"""What a folder's configurations mean in our words, and the way back."""

import dataclasses

import pytest
from helpers.tiny_weights import GEMMA1, GEMMA2, GEMMA3

from hive_jax.errors import CheckpointError
from hive_jax.models.config import TextTowerConfig
from hive_jax.models.presets import decoder_config, siglip_config
from hive_jax.weights import hf_config, hf_decoder, hf_siglip

ACTIVATION = {"hidden_activation": "gelu_pytorch_tanh"}
# As the config.json of published models are written, older ones and newer ones,
# without what has no meaning here.
GEMMA_2B = {
    "model_type": "gemma",
    "hidden_act": "gelu",  # since corrected by the class, and meant so all along
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
}
GEMMA2_2B = {
    "model_type": "gemma2",
    **ACTIVATION,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "cache_implementation": "hybrid",
    "rope_theta": 10000.0,
}
GEMMA3_1B = {
    "model_type": "gemma3_text",
    **ACTIVATION,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
# The files' table is padded.
HIVE_GEMMA3_4B = dataclasses.replace(decoder_config("gemma3_4b"), vocab_size=262_208)
SIGLIP2_GIANT = {
    "model_type": "siglip",
    "text_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "projection_size": 1536,
        "vocab_size": 256000,
    },
    "vision_config": {
        "hidden_size": 1536,
        "image_size": 384,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_hidden_layers": 40,
    },
}


@pytest.mark.parametrize(
    ("hf", "config"),
    [
        (GEMMA_2B, decoder_config("gemma_2b")),
        (GEMMA2_2B, decoder_config("gemma2_2b")),
        (GEMMA3_1B, decoder_config("gemma3_1b")),
        (GEMMA3_4B, HIVE_GEMMA3_4B),
    ],
    ids=["gemma-2b", "gemma-2-2b", "gemma-3-1b", "gemma-3-4b"],
)
def test_published_decoder_configs_convert_to_the_presets(hf, config):
    assert (
        hf_decoder.config_from_hf(hf_config.decoder_config(hf, "here"), "here")
        == config
    )


@pytest.mark.parametrize(
    ("hf", "config"),
    [
        ({"model_type": "siglip", "vision_config": {}}, siglip_config("B", 16, 224)),
        ({"model_type": "siglip_vision_model"}, siglip_config("B", 16, 224)),
        (SIGLIP2_GIANT, siglip_config("g-opt", 16, 384)),
        (
            GEMMA3_4B,
            dataclasses.replace(siglip_config("So400m", 14, 896), map_head=False),
        ),
    ],
    ids=["siglip-base", "its image tower", "siglip2-giant", "gemma-3-4b"],
)
def test_published_image_tower_configs_convert_to_the_presets(hf, config):
    assert (
        hf_siglip.vision_config_from_hf(hf_config.vision_config(hf, "here"), "here")
        == config
    )


@pytest.mark.parametrize(
    ("hf", "config"),
    [
        (
            {"model_type": "siglip", "text_config": {}, "vision_config": {}},
            TextTowerConfig(32000, 64, 768, 12, 3072, 12, out_dim=768),
        ),
        (SIGLIP2_GIANT, TextTowerConfig(256000, 64, 1152, 27, 4304, 16, out_dim=1536)),
    ],
    ids=["siglip-base", "siglip2-giant"],
)
def test_published_text_tower_configs_convert(hf, config):
    _, text = hf_config.two_tower_configs(hf, "here")
    assert hf_siglip.text_config_from_hf(text, "here") == config


@pytest.mark.parametrize("preset", ["gemma_2b", "gemma2_2b", "gemma3_1b", "gemma3_4b"])
def test_decoder_config_survives_a_round_trip(preset):
    config = decoder_config(preset)
    text = hf_config.decoder_config(hf_decoder.config_to_hf(config), "here")
    assert hf_decoder.config_from_hf(text, "here") == config


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(GEMMA1, qk_norm=True),
        dataclasses.replace(GEMMA1, final_softcap=1.0),
        dataclasses.replace(GEMMA1, local_layers=1),
        dataclasses.replace(GEMMA2, rope_factor=8.0),
        dataclasses.replace(GEMMA2, local_rope_base=20.0),
        dataclasses.replace(GEMMA3, query_scale=0.3),
    ],
)
def test_decoder_of_no_family_raises(config):
    with pytest.raises(CheckpointError):
        hf_decoder.config_to_hf(config)
