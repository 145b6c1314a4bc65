"""VLM, first part: the connector learns between a frozen encoder and a frozen LLM.

    python -m hive_jax.train --config configs/vlm1.py --config.init_encoder=workdir/stage3
    python -m hive_jax.train --config configs/vlm1.py:paper    LLaVA LCS-558K

`init_encoder` is the encoder to judge: a run's workdir, a Hugging Face folder or hub
id, an .npz; by default the one that HIVE started from. The paper's table 5.
"""

from configs import base

RULES = (base.FUSION, base.REST)


def get_config(arguments=None):
    config, paper = base.config(arguments, "vlm1", fusion="self_attention")
    config.rules = RULES
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.peak_lr, config.optimizer.min_lr = 1e-3, 0.0
    if paper:
        config.data.source = (
            "llava:data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json,"
            "images=data/LLaVA-Pretrain/images.zip"
        )
        config.data.num_tokens = 2048
        config.data.buckets = (64, 128, 256)
        config.batch_size = 256
        config.total_steps, config.optimizer.warmup_steps = 2180, 66
    else:
        config.optimizer.peak_lr = 3e-3
        config.total_steps, config.optimizer.warmup_steps = 100, 10
    return config
