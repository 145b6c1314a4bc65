"""VLM, stage 1: trains the connector between a frozen encoder and a frozen LLM.

    python -m hive_jax.train --config configs/vlm1.py --config.init_encoder=workdir/stage3
    python -m hive_jax.train --config configs/vlm1.py:paper    LLaVA LCS-558K
    python -m hive_jax.train --config configs/vlm1.py:authors  the authors' script

`init_encoder` is the encoder to evaluate: workdir of a run, Hugging Face folder or hub
id, or .npz; by default the one that HIVE started from.
"""

from hive_jax.config import recipes

LCS_558K = (
    "llava:data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json,"
    "images=data/LLaVA-Pretrain/images.zip"
)
TRAINS = (recipes.FUSION, recipes.FROZEN_REST)

# fmt: off
TABLE = {
    # key                      tabletop (default)  paper (table 5)
    "model.encoder":          ("weights",          "L/16-384"),
    "model.decoder":          ("weights",          "gemma3_1b"),
    "data.source":            ("tabletop",         LCS_558K),
    "data.num_tokens":        (40,                 2048),
    "data.buckets":           ((),                 (64, 128, 256)),
    "rules":                  (TRAINS,             TRAINS),
    "total_steps":            (100,                2180),
    "batch_size":             (64,                 256),
    "optimizer.peak_lr":      (3e-3,               1e-3),
    "optimizer.min_lr":       (0.0,                0.0),
    "optimizer.warmup_steps": (10,                 66),
    "optimizer.beta1":        (0.9,                0.9),
    "optimizer.beta2":        (0.999,              0.999),
    "optimizer.weight_decay": (0.0,                0.0),
    "optimizer.clip_norm":    (1.0,                1.0),
}
# fmt: on
AUTHORS = recipes.AUTHORS_VLM


def get_config(arguments=None):
    return recipes.recipe(
        arguments, TABLE, {"authors": AUTHORS}, name="vlm1", fusion="self_attention"
    )
