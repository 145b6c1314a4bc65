"""Stage 2: trains fusion and LLM; the encoder is frozen. Starts from stage 1.

    python -m hive_jax.train --config configs/stage2.py          1 minute, 2 cores
    python -m hive_jax.train --config configs/stage2.py:paper    2 epochs
    python -m hive_jax.train --config configs/stage2.py:small    on one GPU of 24 GB
    python -m hive_jax.train --config configs/stage2.py:authors  the authors' script

`--config.init=WORKDIR` starts from another run than workdir/stage1. To train only the
connected decoder layers, as one of the authors' scripts does, give their numbers with
the rule: (*recipes.LLM, (4, 9, 13, 17, 22, 26)).
"""

from hive_jax.config import recipes

TRAINS = (recipes.FROZEN_EMBEDDINGS, recipes.FUSION, recipes.LLM, recipes.FROZEN_REST)

# fmt: off
TABLE = {
    # key                      tabletop (default)           paper (table 3, column 2)
    "model.encoder":          ("weights",                   "L/16-384"),
    "model.decoder":          ("weights",                   "gemma3_1b"),
    "model.image_kv":         ("own",                       "own"),
    "data.source":            ("tabletop",                  recipes.LLAVA_CC3M_595K),
    "data.num_tokens":        (40,                          77),
    "rules":                  ((recipes.FAST_GATES, *TRAINS),  TRAINS),
    "total_steps":            (150,                         4652),
    "batch_size":             (64,                          256),
    "optimizer.peak_lr":      (1e-3,                        2e-5),
    "optimizer.min_lr":       (1e-4,                        2e-6),
    "optimizer.warmup_steps": (10,                          140),
    "optimizer.beta1":        (0.9,                         0.9),
    "optimizer.beta2":        (0.95,                        0.95),
    "optimizer.weight_decay": (0.0,                         0.0),
    "optimizer.clip_norm":    (10.0,                        10.0),
}
# fmt: on
SMALL = recipes.SMALL | {"gradient_accumulation_steps": 4}
# HIVE_florence.sh: one epoch of 2.98 M images, a warm-up of 3 %.
AUTHORS = recipes.AUTHORS | {
    "seed": 41,
    "rules": (recipes.FUSION, recipes.CONNECTED_ATTENTION, recipes.FROZEN_REST),
    "total_steps": 2907,
    "batch_size": 1024,
    "gradient_accumulation_steps": 8,
    "optimizer.peak_lr": 1e-4,
    "optimizer.min_lr": 1e-5,
    "optimizer.warmup_steps": 88,
    "optimizer.weight_decay": recipes.coupled_decay(1e-5, peak_lr=1e-4),
    "optimizer.clip_norm": 0.6,
}
SA_FLORENCE = {
    "rules": (recipes.FUSION, recipes.FIRST_ATTENTION, recipes.FROZEN_REST),
    "gradient_accumulation_steps": 16,
    "optimizer.clip_norm": 1.0,
}


def get_config(arguments=None):
    changes = {
        "small": SMALL,
        "small,fusion=self_attention": {"gradient_accumulation_steps": 8},
        "authors": AUTHORS,
        "authors,fusion=self_attention": SA_FLORENCE,
    }
    return recipes.recipe(arguments, TABLE, changes, name="stage2", previous="stage1")
