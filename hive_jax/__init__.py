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

# Public name -> module that defines it.
_PUBLIC = {
    "Decoder": "hive_jax.models.decoder",
    "DecoderConfig": "hive_jax.models.decoder",
    "Encoder": "hive_jax.inference.model",
    "Hive": "hive_jax.models.hive",
    "HiveConfig": "hive_jax.models.hive",
    "RunConfig": "hive_jax.config",
    "SiglipConfig": "hive_jax.models.siglip",
    "SiglipEncoder": "hive_jax.models.siglip",
    "TrainedModel": "hive_jax.inference.model",
    "get_config": "hive_jax.config.cli",
    "load": "hive_jax.inference.model",
    "load_encoder": "hive_jax.inference.model",
    "save_encoder": "hive_jax.weights",
    "train": "hive_jax.training.trainer",
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from hive_jax.config import RunConfig
    from hive_jax.config.cli import get_config
    from hive_jax.inference.model import Encoder, TrainedModel, load, load_encoder
    from hive_jax.models.decoder import Decoder, DecoderConfig
    from hive_jax.models.hive import Hive, HiveConfig
    from hive_jax.models.siglip import SiglipConfig, SiglipEncoder
    from hive_jax.training.trainer import train
    from hive_jax.weights import save_encoder


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hive_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
