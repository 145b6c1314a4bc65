"""Stage 0: the tiny base models that come with the package.

    python -m hive_jax.train --config configs/stage0.py:siglip    20 minutes, 2 cores
    python -m hive_jax.train --config configs/stage0.py:llm        2 minutes, 2 cores

A SigLIP tower trained contrastively on captions that seldom name a material, so that
there is something left for HIVE to teach; and a decoder trained on text alone. Each
is exported by tools/export_hf.py. At scale their place is taken by the
released SigLIP and Gemma weights.
"""

import dataclasses

from configs import base
from hive_jax.errors import ConfigError
from hive_jax.models.presets import decoder_config
from hive_jax.models.siglip import SiglipConfig


def get_config(arguments=None):
    chosen = base.parse(arguments, ("siglip", "llm"))
    if chosen["siglip"] == chosen["llm"]:
        raise ConfigError("choose configs/stage0.py:siglip or configs/stage0.py:llm")
    config = base.config("fusion=none" if chosen["llm"] else "", "stage0")[0]
    config.init_encoder = config.init_decoder = ""
    config.data.tokenizer = "builtin:tabletop"
    config.model.num_connections = 0
    config.model.encoder.update(dataclasses.asdict(SiglipConfig()))
    config.model.decoder.update(dataclasses.asdict(decoder_config("tiny")))
    config.rules = ((".*", 1.0),)
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.99
    config.optimizer.weight_decay = 1e-4
    config.optimizer.peak_lr, config.optimizer.min_lr = 2e-3, 0.0
    config.optimizer.warmup_steps = 50
    if chosen["siglip"]:
        config.name, config.objective = "stage0_siglip", "contrastive"
        config.data.source, config.data.num_tokens = "tabletop:vague", 32
        config.whiten_patches = True
        config.total_steps, config.eval_every, config.checkpoint_every = 4000, 500, 500
    else:
        config.name = "stage0_llm"
        config.data.source = "tabletop:text"
        config.total_steps, config.eval_every, config.checkpoint_every = 1000, 250, 250
    return config
