"""Stage 1: trains the fusion between a frozen encoder and a frozen LLM.

    python -m hive_jax.train --config configs/stage1.py          1 minute, 2 cores
    python -m hive_jax.train --config configs/stage1.py:paper    595 k images
    python -m hive_jax.train --config configs/stage1.py:small    on one GPU of 24 GB
    python -m hive_jax.train --config configs/stage1.py:authors  the authors' script

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
SMALL = recipes.SMALL | {"gradient_accumulation_steps": 2}
# HIVE_florence.sh: 0.2 epochs of 2.98 M images, which are the steps of table 3.
AUTHORS = recipes.AUTHORS | {
    "seed": 40,
    "gradient_accumulation_steps": 2,
    "optimizer.weight_decay": recipes.coupled_decay(1e-5, peak_lr=1e-3),
}
SA_FLORENCE = {"gradient_accumulation_steps": 4}


def get_config(arguments=None):
    changes = {
        "small": SMALL,
        "small,fusion=self_attention": {"gradient_accumulation_steps": 4},
        "authors": AUTHORS,
        "authors,fusion=self_attention": SA_FLORENCE,
    }
    return recipes.recipe(arguments, TABLE, changes, name="stage1")
