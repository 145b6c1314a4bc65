"""VLM, stage 2: trains the LLM to answer; the encoder is frozen. Starts from vlm1.

    python -m hive_jax.train --config configs/vlm2.py
    python -m hive_jax.train --config configs/vlm2.py:paper    LLaVA-NeXT, 738 k
    python -m hive_jax.train --config configs/vlm2.py:authors  the authors' script

`--config.init=WORKDIR` starts from another run than workdir/vlm1.
"""

from hive_jax.config import recipes

LLAVA_NEXT = "llava:data/LLaVA-NeXT-Data/data,form=chat"
TRAINS = (recipes.FUSION, recipes.LLM, recipes.FROZEN_REST)

# fmt: off
TABLE = {
    # key                      tabletop (default)    paper (table 5)
    "model.encoder":          ("weights",            "L/16-384"),
    "model.decoder":          ("weights",            "gemma3_1b"),
    "data.source":            ("tabletop:questions", LLAVA_NEXT),
    # Padded to a square, as in LLaVA's fine-tuning.
    "data.preprocessing":     ("",                   "hf_bicubic_pad"),
    "data.num_tokens":        (40,                   2048),
    "data.buckets":           ((),                   (128, 256, 512, 1024)),
    "rules":                  (TRAINS,               TRAINS),
    "total_steps":            (500,                  11_540),
    "batch_size":             (64,                   64),
    "optimizer.peak_lr":      (2e-3,                 2e-5),
    "optimizer.min_lr":       (0.0,                  0.0),
    "optimizer.warmup_steps": (20,                   347),
    "optimizer.beta1":        (0.9,                  0.9),
    "optimizer.beta2":        (0.999,                0.999),
    "optimizer.weight_decay": (0.0,                  0.0),
    "optimizer.clip_norm":    (1.0,                  1.0),
}
# fmt: on
AUTHORS = recipes.AUTHORS_VLM


def get_config(arguments=None):
    return recipes.recipe(
        arguments,
        TABLE,
        {"authors": AUTHORS},
        name="vlm2",
        previous="vlm1",
        fusion="self_attention",
    )
