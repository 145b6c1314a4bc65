"""Stage 1: what connects the two towers learns; both of them are frozen.

    python -m hive_jax.train --config configs/stage1.py          1 minute, 2 cores
    python -m hive_jax.train --config configs/stage1.py:paper    595 k images

`:fusion=cascaded` and `:fusion=self_attention` are the baselines; see base.py.
"""

from configs import base

RULES = (base.FUSION, base.REST)


def get_config(arguments=None):
    config, paper = base.config(arguments, "stage1")
    config.rules = RULES
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    if paper:  # table 3, column 1
        config.optimizer.peak_lr, config.optimizer.min_lr = 1e-3, 1e-4
        config.batch_size = 256
        config.total_steps, config.optimizer.warmup_steps = 2326, 70
    else:
        config.rules = (base.GATES, *config.rules)
        config.optimizer.peak_lr, config.optimizer.min_lr = 3e-3, 3e-4
        config.total_steps, config.optimizer.warmup_steps = 200, 10
    return config
