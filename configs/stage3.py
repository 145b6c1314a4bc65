"""Stage 3: trains encoder, fusion and LLM. Starts from stage 2.

    python -m hive_jax.train --config configs/stage3.py          2 minutes, 2 cores
    python -m hive_jax.train --config configs/stage3.py:paper    1 epoch
    python -m hive_jax.train --config configs/stage3.py:small    on one GPU of 24 GB
    python -m hive_jax.train --config configs/stage3.py:authors  the authors' script

`--config.init=WORKDIR` starts from another run than workdir/stage2.
"""

from hive_jax.config import recipes

TRAINS = (
    recipes.FROZEN_EMBEDDINGS,
    recipes.FROZEN_POOLING,
    recipes.FUSION,
    recipes.LLM,
    recipes.ENCODER,
)

# fmt: off
TABLE = {
    # key                           tabletop (default)           paper (table 3, column 3)
    "model.encoder":               ("weights",                   "L/16-384"),
    "model.decoder":               ("weights",                   "gemma3_1b"),
    "model.image_kv":              ("own",                       "own"),
    "data.source":                 ("tabletop",                  recipes.LLAVA_CC3M_595K),
    "data.num_tokens":             (40,                          77),
    "rules":                       ((recipes.FAST_GATES, *TRAINS),  TRAINS),
    "total_steps":                 (250,                         581),
    "batch_size":                  (64,                          1024),
    "gradient_accumulation_steps": (1,                           4),
    "optimizer.peak_lr":           (2e-3,                        2e-6),
    "optimizer.min_lr":            (0.0,                         0.0),
    "optimizer.warmup_steps":      (10,                          18),
    "optimizer.beta1":             (0.9,                         0.9),
    "optimizer.beta2":             (0.95,                        0.95),
    "optimizer.weight_decay":      (0.0,                         0.0),
    "optimizer.clip_norm":         (10.0,                        10.0),
}
# fmt: on
SMALL = recipes.SMALL | {"gradient_accumulation_steps": 32}
_ENCODER = (
    recipes.FROZEN_POOLING,
    recipes.ENCODER_BLOCKS_TO_23,
    recipes.ENCODER,
    recipes.FROZEN_REST,
)
# HIVE_florence.sh: as in stage 2, and the encoder.
AUTHORS = recipes.AUTHORS | {
    "seed": 42,
    "rules": (recipes.FUSION, recipes.CONNECTED_ATTENTION, *_ENCODER),
    "total_steps": 2907,
    "batch_size": 1024,
    "gradient_accumulation_steps": 16,
    "optimizer.peak_lr": 5e-6,
    "optimizer.warmup_steps": 88,
    "optimizer.weight_decay": recipes.coupled_decay(1e-5, peak_lr=5e-6),
    "optimizer.clip_norm": 0.8,
}
SA_FLORENCE = {
    "rules": (recipes.FUSION, recipes.FIRST_ATTENTION, *_ENCODER),
    "gradient_accumulation_steps": 32,
    "optimizer.clip_norm": 1.0,
}


def get_config(arguments=None):
    changes = {
        "small": SMALL,
        "authors": AUTHORS,
        "authors,fusion=self_attention": SA_FLORENCE,
    }
    return recipes.recipe(arguments, TABLE, changes, name="stage3", previous="stage2")
