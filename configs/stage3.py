"""Stage 3: everything learns, the encoder too. Starts from stage 2.

    python -m hive_jax.train --config configs/stage3.py          2 minutes, 2 cores
    python -m hive_jax.train --config configs/stage3.py:paper    1 epoch

`--config.init=WORKDIR` starts from another run than workdir/stage2.
"""

from configs import base

RULES = (base.EMBEDDINGS, base.BESIDE, base.FUSION, base.LLM, base.ENCODER)


def get_config(arguments=None):
    config, paper = base.config(arguments, "stage3", previous="stage2")
    config.rules = RULES
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 10.0
    if paper:  # table 3, column 3
        config.optimizer.peak_lr, config.optimizer.min_lr = 2e-6, 0.0
        config.batch_size, config.accumulate = 1024, 4
        config.total_steps, config.optimizer.warmup_steps = 581, 18
    else:
        config.rules = (base.GATES, *config.rules)
        config.optimizer.peak_lr, config.optimizer.min_lr = 2e-3, 0.0
        config.total_steps, config.optimizer.warmup_steps = 250, 10
    return config
