"""Tiny models of ours with random parameters, and folders of them; no torch is needed.

No matrix is square, where that can be helped: a shape cannot show that a square one is
transposed.
"""

import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy

from hive_jax.models.config import (
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)
from hive_jax.weights import hf_models
from hive_jax.weights.mapping import param_shapes
from hive_jax.weights.safetensors import dtype_named, write_tensors

IMAGE = SiglipConfig(24, 2, 40, 2, patch_size=4, image_size=8)
TEXT = TextTowerConfig(61, 6, 20, 1, 36, 2, out_dim=24)
_SIZES = {
    "vocab_size": 61,
    "width": 24,
    "depth": 3,
    "mlp_dim": 40,
    "num_heads": 4,
    "head_dim": 8,
}
GEMMA1 = DecoderConfig(**_SIZES)
GEMMA2 = DecoderConfig(
    **_SIZES,
    num_kv_heads=2,
    query_scale=6**-0.5,
    attention_softcap=2.0,
    final_softcap=1.5,
    post_norms=True,
    local_layers=1,
    window=3,
)
GEMMA3 = DecoderConfig(
    **_SIZES,
    post_norms=True,
    qk_norm=True,
    local_layers=2,
    window=3,
    rope_base=5000.0,
    local_rope_base=20.0,
    rope_factor=8.0,
)


_LLAMA = {
    **_SIZES,
    "num_kv_heads": 2,
    "activation": "silu",
    "norm_offset": 0.0,
    "norm_eps": 1e-5,
    "embed_scale": False,
    "rope_base": 5000.0,
    "local_rope_base": 5000.0,
}
LLAMA = DecoderConfig(**_LLAMA, tied_head=False)
LLAMA3 = DecoderConfig(**_LLAMA, rope_factor=8.0, rope_original_length=16)
QWEN2 = DecoderConfig(**_LLAMA, qkv_bias=True, tied_head=False)
QWEN3 = DecoderConfig(**_LLAMA, qk_norm=True)
DECODERS = {
    "gemma1": GEMMA1,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "llama": LLAMA,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}


def hive_config(fusion: str, decoder: DecoderConfig = GEMMA3, **options) -> HiveConfig:
    options = {"connections": ((1, 1),), **options}
    return HiveConfig(IMAGE, decoder, fusion, **options)


def arrays(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters by name, all activations O(1); equal names, equal values."""
    values = {}
    for name, shape in param_shapes(config).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = rng.normal(size=shape)
        if name.endswith(("scale", "bias", "gate", "t", "b")):
            value = 0.5 + 0.3 * noise
        else:
            value = noise / shape[-1] ** 0.5
        values[name] = value.astype(np.float32)
    return values


def write_folder(folder: Path, layout, dtype: str = "float32", **options) -> str:
    """A folder of random parameters. `options` go to the writer of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    as_type, model = dtype_named(dtype), arrays(layout.model)
    hf_models.write(folder, layout, model, as_type)
    if options:
        (folder / "model.safetensors").unlink()
        make, shapes = hf_models.tensors(layout, model, as_type)
        write_tensors(folder, make, shapes, as_type, **options)
    return str(folder)


def stored(folder: Path) -> dict[str, tuple]:
    """What is in a folder, bit by bit: name -> dtype, shape, bytes."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
    return {
        name: (tensor.dtype.name, tensor.shape, tensor.tobytes())
        for name, tensor in tensors.items()
    }
