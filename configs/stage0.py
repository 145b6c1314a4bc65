"""Stage 0: trains the tiny base models that are shipped with the package.

    python -m hive_jax.train --config configs/stage0.py:siglip    20 minutes, 2 cores
    python -m hive_jax.train --config configs/stage0.py:llm        2 minutes, 2 cores
    python -m hive_jax.train --config configs/stage0.py:llm,decoder=tiny_llama

A SigLIP tower trained contrastively on captions that seldom name a material, so that
there is something left for HIVE to teach; and a decoder trained on text alone. Each
is exported by hive_jax.export_hf. At scale, start from the released weights of a SigLIP
and an LLM instead.
"""

from hive_jax.config import recipes
from hive_jax.errors import ConfigError

# fmt: off
TABLE = {
    # key                      siglip            llm
    "name":                   ("stage0_siglip",  "stage0_llm"),
    "objective":              ("contrastive",    "caption"),
    "model.encoder":          ("tiny/8-64",      "tiny/8-64"),
    "model.decoder":          ("tiny",           "tiny"),
    "model.fusion":           ("hive",           "none"),
    "data.source":            ("tabletop:vague", "tabletop:text"),
    "data.tokenizer":         ("builtin:tabletop", "builtin:tabletop"),
    "data.num_tokens":        (32,               40),
    "whiten_patches":         (True,             False),
    "rules":                  (((".*", 1.0),),   ((".*", 1.0),)),
    "total_steps":            (4000,             1000),
    "eval_every":             (500,              250),
    "checkpoint_every":       (500,              250),
    "batch_size":             (64,               64),
    "optimizer.peak_lr":      (2e-3,             2e-3),
    "optimizer.min_lr":       (0.0,              0.0),
    "optimizer.warmup_steps": (50,               50),
    "optimizer.beta1":        (0.9,              0.9),
    "optimizer.beta2":        (0.99,             0.99),
    "optimizer.weight_decay": (1e-4,             1e-4),
}
# fmt: on


def get_config(arguments=None):
    chosen = recipes.parse(arguments, ("siglip", "llm"), decoder="")
    if chosen["siglip"] == chosen["llm"]:
        raise ConfigError("choose configs/stage0.py:siglip or configs/stage0.py:llm")
    values = recipes.column(TABLE, 0 if chosen["siglip"] else 1)
    if decoder := chosen["decoder"]:
        values["model.decoder"] = decoder
        values["name"] += f"_{decoder}"
    return recipes.config_dict(values)
