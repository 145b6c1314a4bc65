"""Evaluates a frozen encoder: probes, zero-shot classification, retrieval.

    python -m hive_jax.probe --config configs/probe.py --run workdir/stage3
    python -m hive_jax.probe --config configs/probe.py:attentive --run ...
    python -m hive_jax.probe --config configs/probe.py:paper,linear --run ... \\
        --config.train=food101:DIR --config.test=food101:DIR,split=validation

By default linear, on the built-in world's 36 classes of material and shape. `:paper` is
the recipe of table 4; ImageNet-1k has --config.epochs=1 --config.peak_lr=1e-3 there.
"""

import dataclasses

from hive_jax.config import ProbeConfig, recipes, to_dict
from hive_jax.config.probe_schema import PROBES
from hive_jax.errors import ConfigError


def get_config(arguments=None):
    import ml_collections

    chosen = recipes.parse(arguments, ("paper", *PROBES))
    probes = [name for name in PROBES if chosen[name]]
    if len(probes) > 1:
        raise ConfigError(f"choose one of {', '.join(probes)}")
    config = ProbeConfig(probe=(probes or ["linear"])[0])
    if chosen["paper"]:
        recipe = {"augment": True, "train": "food101", "threads": 16}
        recipe["test"] = "food101:,split=validation"
    elif config.probe == "retrieval":
        recipe = {"test": "tabletop:vague,split=test,take=first:1000"}
    else:  # few and small images: many epochs, of little time each
        recipe = {"epochs": 800, "warmup_epochs": 2.0, "peak_lr": 0.3}
        recipe["weight_decay"] = 0.0
    return ml_collections.ConfigDict(to_dict(dataclasses.replace(config, **recipe)))
