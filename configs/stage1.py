"""Stage 1: trains the fusion between a frozen encoder and a frozen LLM.

    python -m hive_jax.train --config configs/stage1.py          1 minute, 2 cores
    python -m hive_jax.train --config configs/stage1.py:paper    595 k images

`:fusion=cascaded` and `:fusion=self_attention` are the baselines; for other arguments
see hive_jax/config/recipes.py.
"""

from hive_jax.config import recipes

TRAINS = (recipes.FUSION, recipes.FROZEN_REST)

# fmt: off
TABLE = {
    # key                      tabletop (default)           paper (table 3, column 1)
    "model.encoder":          ("weights",                   "L/16-384"),
    "model.decoder":          ("weights",                   "gemma3_1b"),
    "model.image_kv":         ("shared",                    "shared"),
    "data.source":            ("tabletop",                  recipes.LLAVA_CC3M_595K),
    "data.num_tokens":        (40,                          77),
    "rules":                  ((recipes.FAST_GATES, *TRAINS),  TRAINS),
    "total_steps":            (200,                         2326),
    "batch_size":             (64,                          256),
    "optimizer.peak_lr":      (3e-3,                        1e-3),
    "optimizer.min_lr":       (3e-4,                        1e-4),
    "optimizer.warmup_steps": (10,                          70),
    "optimizer.beta1":        (0.9,                         0.9),
    "optimizer.beta2":        (0.999,                       0.999),
    "optimizer.weight_decay": (0.0,                         0.0),
    "optimizer.clip_norm":    (1.0,                         1.0),
}
# fmt: on


def get_config(arguments=None):
    return recipes.recipe(arguments, TABLE, name="stage1")
