"""Configs of tiny runs of every kind to export, and reports of exports."""

import dataclasses
import json

from hive_jax.config import DataConfig, RunConfig
from hive_jax.models.config import (
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)

ENCODER = SiglipConfig(32, 3, 48, 2, patch_size=8, image_size=28)
GEMMA3 = DecoderConfig(
    *(512, 32, 3, 48, 4, 2, 16), post_norms=True, qk_norm=True, local_layers=2, window=6
)
GEMMA1 = DecoderConfig(512, 32, 3, 48, 4, 2, 16)
GEMMA2 = dataclasses.replace(
    GEMMA3,
    qk_norm=False,
    local_layers=1,
    query_scale=4**-0.5,
    attention_softcap=3.0,
    final_softcap=2.0,
)
_LLAMA = {
    "activation": "silu",
    "norm_offset": 0.0,
    "norm_eps": 1e-5,
    "embed_scale": False,
    "tied_head": False,
}
LLAMA = DecoderConfig(512, 32, 3, 48, 4, 2, 16, **_LLAMA)
LLAMA3 = dataclasses.replace(LLAMA, rope_factor=8.0, rope_original_length=16)
QWEN2 = DecoderConfig(512, 32, 3, 48, 4, 2, 16, **_LLAMA, qkv_bias=True)
DECODERS = {
    "gemma1": GEMMA1,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "llama": LLAMA,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
}
TEXT = TextTowerConfig(512, 8, 32, 2, 48, 2, out_dim=32)
DATA = DataConfig(tokenizer="builtin:tabletop", preprocessing="hf_bicubic")


def run_config(kind: str) -> RunConfig:
    if kind == "contrastive":
        model = HiveConfig(ENCODER, GEMMA3)
        return RunConfig(
            objective="contrastive",
            model=model,
            text_tower=TEXT,
            data=dataclasses.replace(DATA, num_tokens=8),
        )
    # "FUSION [penultimate | own] [of DECODER]", "own" of joint alone.
    fusion, _, name = kind.partition(" of ")
    fusion, _, change = fusion.partition(" ")
    decoder = DECODERS[name or "gemma3"]
    connections = ((2, 1),) if fusion == "self_attention" else ((1, 1), (3, 2))
    model = HiveConfig(ENCODER, decoder, fusion, connections)
    if change == "penultimate":
        model = dataclasses.replace(model, connections=(), feature_depth=-2)
    if change == "own":
        model = dataclasses.replace(model, image_kv="own", projector="linear")
    return RunConfig(model=model, data=DATA)


def report_of(folder) -> dict:
    return json.loads((folder / "hive_export.json").read_text())
