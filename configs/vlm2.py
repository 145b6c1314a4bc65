"""VLM, second part: the LLM learns to answer; the encoder is frozen. Starts from vlm1.

    python -m hive_jax.train --config configs/vlm2.py
    python -m hive_jax.train --config configs/vlm2.py:paper    LLaVA-NeXT, 738 k

`--config.init=WORKDIR` starts from another run than workdir/vlm1. Table 5.
"""

from configs import base

RULES = (base.FUSION, base.LLM, base.REST)


def get_config(arguments=None):
    config, paper = base.config(
        arguments, "vlm2", previous="vlm1", fusion="self_attention"
    )
    config.rules = RULES
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.peak_lr, config.optimizer.min_lr = 2e-5, 0.0
    if paper:
        # Photos keep their shape, with bars around them, as LLaVA's fine-tuning has it.
        config.data.source = "llava:data/LLaVA-NeXT-Data/data,form=chat"
        config.data.preprocessing = "hf_bicubic_pad"
        config.data.num_tokens = 2048
        config.data.buckets = (128, 256, 512, 1024)
        config.batch_size = 64
        config.total_steps, config.optimizer.warmup_steps = 11_540, 347
    else:
        config.data.source = "tabletop:questions"
        config.optimizer.peak_lr = 2e-3
        config.total_steps, config.optimizer.warmup_steps = 500, 20
    return config
