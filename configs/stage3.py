"""Stage 3: trains encoder, fusion and LLM. Starts from stage 2.

    python -m hive_jax.train --config configs/stage3.py          2 minutes, 2 cores
    python -m hive_jax.train --config configs/stage3.py:paper    1 epoch

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


def get_config(arguments=None):
    return recipes.recipe(arguments, TABLE, name="stage3", previous="stage2")
