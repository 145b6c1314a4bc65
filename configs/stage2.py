"""Stage 2: trains fusion and LLM; the encoder is frozen. Starts from stage 1.

    python -m hive_jax.train --config configs/stage2.py          1 minute, 2 cores
    python -m hive_jax.train --config configs/stage2.py:paper    2 epochs

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


def get_config(arguments=None):
    return recipes.recipe(arguments, TABLE, name="stage2", previous="stage1")
