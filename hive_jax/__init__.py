"""HIVE: hierarchical pre-training of vision encoders with LLMs, in JAX/Flax.

    import hive_jax

    hive_jax.train(hive_jax.get_config("stage1"), "workdir/stage1")
    model = hive_jax.load("workdir/stage1")
    features = model.encoder(images, depths=(2, 4)).features
    captions = model.generate(images)

Names below are imported on first use, so `import hive_jax` takes no time.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "Hive",
    "HiveConfig",
    "RunConfig",
    "SiglipConfig",
    "SiglipEncoder",
    "TrainedModel",
    "get_config",
    "load",
    "load_encoder",
    "save_encoder",
    "train",
]

if TYPE_CHECKING:
    from hive_jax.config import RunConfig
    from hive_jax.config.cli import get_config
    from hive_jax.inference.encoder import Encoder, load_encoder
    from hive_jax.inference.model import TrainedModel, load
    from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
    from hive_jax.models.decoder import Decoder
    from hive_jax.models.hive import Hive
    from hive_jax.models.siglip import SiglipEncoder
    from hive_jax.training.trainer import train
    from hive_jax.weights import save_encoder

# Module -> public names that it defines.
_MODULES = {
    "hive_jax.models.config": ("DecoderConfig", "HiveConfig", "SiglipConfig"),
    "hive_jax.models.decoder": ("Decoder",),
    "hive_jax.inference.encoder": ("Encoder", "load_encoder"),
    "hive_jax.inference.model": ("TrainedModel", "load"),
    "hive_jax.models.hive": ("Hive",),
    "hive_jax.config": ("RunConfig",),
    "hive_jax.models.siglip": ("SiglipEncoder",),
    "hive_jax.config.cli": ("get_config",),
    "hive_jax.weights": ("save_encoder",),
    "hive_jax.training.trainer": ("train",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'hive_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
