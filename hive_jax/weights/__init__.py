"""Weights in and out of the formats that people have.

config, params = load_encoder("google/siglip-large-patch16-384")
out = SiglipEncoder(config).apply({"params": params}, images, depths=(6, 12))
"""

from hive_jax.weights.api import (
    load_decoder,
    load_encoder,
    load_two_towers,
    save_encoder,
)

__all__ = ["load_decoder", "load_encoder", "load_two_towers", "save_encoder"]
