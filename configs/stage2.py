"""Stage 2: the LLM learns too; the encoder is frozen. Starts from stage 1.

    python -m hive_jax.train --config configs/stage2.py          1 minute, 2 cores
    python -m hive_jax.train --config configs/stage2.py:paper    2 epochs

`--config.init=WORKDIR` starts from another run than workdir/stage1. To train only the
connected decoder layers, as one of the authors' scripts does, give their numbers with
the rule: (*base.LLM, (4, 9, 13, 17, 22, 26)).
"""

from configs import base

RULES = (base.EMBEDDINGS, base.FUSION, base.LLM, base.REST)


def get_config(arguments=None):
    config, paper = base.config(arguments, "stage2", previous="stage1")
    config.rules = RULES
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 10.0
    if paper:  # table 3, column 2
        config.optimizer.peak_lr, config.optimizer.min_lr = 2e-5, 2e-6
        config.batch_size = 256
        config.total_steps, config.optimizer.warmup_steps = 4652, 140
    else:
        config.rules = (base.GATES, *config.rules)
        config.optimizer.peak_lr, config.optimizer.min_lr = 1e-3, 1e-4
        config.total_steps, config.optimizer.warmup_steps = 150, 10
    return config
