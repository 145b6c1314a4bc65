"""Smallest and largest valid value of every number in a config.

The bounds are far beyond sensible values, and within what int32 and float32 hold, which
the programs compute with.
"""

import dataclasses

import numpy as np

from hive_jax.config.validation import require

_INT32 = 2**31 - 1
# The smallest normal float32: XLA flushes smaller numbers to 0.
_TINY = float(np.finfo(np.float32).tiny)

_SIZES = {
    "width": (1, 2**16),
    "depth": (1, 1000),
    "mlp_dim": (1, 2**20),
    "num_heads": (1, 1024),
}
# Lengths of texts in tokens.
_NUM_TOKENS = (2, 2**20)
_VOCAB_SIZE = (1, 10**7)
_IMAGE_SIZE = 2**13
_THREADS = (1, 1024)
# jax.random.key uses 32 bits of a seed.
_SEED = (0, 2**32 - 1)
_BATCH_SIZE = (1, 2**20)
_RATE = (1e-20, 1e3)
_NORM = (1e-20, 1e20)
# 1 - beta must not be 0 in float32.
_BETA = (0.0, 0.999999)
_FRACTION = (0.0, 1.0)
_MESH_AXIS = (-1, 2**20)
# Negative ones count from the end.
_BLOCK = (-1000, 1000)

# Name of a config's class -> name of a number, or of a tuple of numbers -> its bounds.
BOUNDS = {
    "RunConfig": {
        "seed": _SEED,
        "image_size": (0, _IMAGE_SIZE),
        "total_steps": (1, _INT32),
        "batch_size": _BATCH_SIZE,
        "gradient_accumulation_steps": _BATCH_SIZE,
        "log_every": (1, _INT32),
        "eval_every": (1, _INT32),
        "checkpoint_every": (1, _INT32),
        "max_to_keep": (1, 10**6),
        "hang_timeout": (1.0, 1e6),
    },
    "HiveConfig": {
        "connections": (1, 1000),
        "num_connections": (0, 1000),
        "feature_depth": _BLOCK,
    },
    "SiglipConfig": _SIZES | {"patch_size": (1, 1024), "image_size": (1, _IMAGE_SIZE)},
    "TextTowerConfig": _SIZES
    | {
        "vocab_size": _VOCAB_SIZE,
        "num_tokens": _NUM_TOKENS,
        "out_dim": _SIZES["width"],
    },
    "DecoderConfig": _SIZES
    | {
        "vocab_size": _VOCAB_SIZE,
        "num_kv_heads": _SIZES["num_heads"],
        "head_dim": (2, 2**12),
        "query_scale": (0.0, 1e6),
        "attention_softcap": (0.0, 1e6),
        "final_softcap": (0.0, 1e6),
        "local_layers": (0, 1000),
        "window": (1, _INT32),
        "rope_base": (1.0, 1e12),
        "local_rope_base": (1.0, 1e12),
        "rope_factor": (1e-3, 1e6),
        "rope_original_length": (0, _INT32),
        "norm_offset": (0.0, 1e3),
        "norm_eps": (0.0, 1.0),
    },
    "DataConfig": {
        "seed": _SEED,
        "num_tokens": _NUM_TOKENS,
        "buckets": _NUM_TOKENS,
        "validation_size": (2, 10**6),
        "max_bad_fraction": _FRACTION,
        "threads": _THREADS,
    },
    "Source": {"weight": (1e-9, 1e9)},
    "OptimizerConfig": {
        "peak_lr": _RATE,
        "min_lr": (0.0, _RATE[1]),
        "warmup_steps": (0, _INT32),
        "beta1": _BETA,
        "beta2": _BETA,
        "weight_decay": _FRACTION,
        "clip_norm": _NORM,
    },
    "MeshConfig": {"data": _MESH_AXIS, "fsdp": _MESH_AXIS, "tensor": _MESH_AXIS},
    "Rule": {"multiplier": (1e-9, 1e9), "layers": (1, 1000)},
    "ProbeConfig": {
        "depth": _BLOCK,
        "num_seeds": (1, 1000),
        "seed": _SEED,
        "epochs": (1, 10**6),
        "warmup_epochs": (0.0, 1e6),
        "batch_size": _BATCH_SIZE,
        "peak_lr": _RATE,
        "weight_decay": (0.0, 1e3),
        "clip_norm": _NORM,
        "max_bad_fraction": _FRACTION,
        "threads": _THREADS,
    },
}


def require_in_bounds(config, prefix: str = "") -> None:
    """Raises ConfigError for the first number of a config that is out of its bounds.

    Args:
      config: a dataclass; those in it and in its tuples are checked too.
      prefix: prepended to every key.
    """
    for field in dataclasses.fields(config):
        bounds = BOUNDS.get(type(config).__name__, {}).get(field.name)
        _require(getattr(config, field.name), bounds, prefix + field.name)


def _require(value, bounds: tuple | None, key: str) -> None:
    if dataclasses.is_dataclass(value):
        require_in_bounds(value, f"{key}.")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            _require(item, bounds, f"{key}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = bounds
        require(low <= value <= high, key, value, describe_bounds(bounds))
        is_normal = value == 0 or abs(value) >= _TINY
        require(is_normal, key, value, f"0, or at least {_TINY:.1e}, as it is float32")


def describe_bounds(bounds: tuple[float, float]) -> str:
    """Formats the smallest and the largest value, such as "1 to 65,536"."""
    return " to ".join(f"{b:,}" if isinstance(b, int) else f"{b:g}" for b in bounds)
