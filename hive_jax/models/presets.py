"""Named sizes of encoders and decoders.

The tests compare them with big_vision's and with transformers' own configurations.
"""

from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.siglip import SiglipConfig

# Width, depth, MLP width, heads: big_vision's table of ViT sizes (models/vit.py), and
# "tiny", which trains on a laptop's CPU.
SIGLIP_VARIANTS = {
    "tiny": (64, 8, 256, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
}

# Shared by all sizes of Gemma 3: five sliding-window layers to each global one. 270M and
# 1B alone have a window of 512; larger sizes also scale their rotary positions.
_GEMMA3 = {
    "vocab_size": 262_144,
    "head_dim": 256,
    "post_norms": True,
    "qk_norm": True,
    "local_layers": 5,
    "window": 512,
    "rope_base": 1_000_000.0,
}

DECODERS = {
    "tiny": DecoderConfig(qk_norm=True, post_norms=True),
    # In order: vocab_size, width, depth, mlp_dim, num_heads, num_kv_heads, head_dim.
    "gemma_2b": DecoderConfig(256_000, 2048, 18, 16_384, 8, 1, 256),
    # Sliding-window and global layers alternate, with the default window of 4096.
    "gemma2_2b": DecoderConfig(
        256_000,
        2304,
        26,
        9216,
        8,
        4,
        256,
        attention_softcap=50.0,
        final_softcap=30.0,
        post_norms=True,
        local_layers=1,
    ),
    "gemma3_270m": DecoderConfig(
        width=640, depth=18, mlp_dim=2048, num_heads=4, num_kv_heads=1, **_GEMMA3
    ),
    "gemma3_1b": DecoderConfig(
        width=1152, depth=26, mlp_dim=6912, num_heads=4, num_kv_heads=1, **_GEMMA3
    ),
    # The decoder of the multimodal model. Hugging Face's files pad its table to 262,208
    # tokens: `decoder=weights` takes their size.
    "gemma3_4b": DecoderConfig(
        width=2560,
        depth=34,
        mlp_dim=10_240,
        num_heads=8,
        num_kv_heads=4,
        rope_factor=8.0,
        **_GEMMA3 | {"window": 1024},
    ),
}


def siglip_config(variant: str, patch_size: int, image_size: int) -> SiglipConfig:
    """Returns the configuration of a named size, e.g. siglip_config("L", 16, 384).

    Args:
      variant: a key of SIGLIP_VARIANTS.
      patch_size, image_size: sides in pixels.

    Raises:
      ValueError: unknown variant.
    """
    if variant not in SIGLIP_VARIANTS:
        raise ValueError(
            f"SigLIP variant is {variant!r}; expected one of {list(SIGLIP_VARIANTS)}"
        )
    width, depth, mlp_dim, num_heads = SIGLIP_VARIANTS[variant]
    return SiglipConfig(width, depth, mlp_dim, num_heads, patch_size, image_size)


def decoder_config(name: str) -> DecoderConfig:
    """Returns a configuration by name, e.g. decoder_config("gemma3_1b").

    Raises:
      ValueError: `name` is not a key of DECODERS.
    """
    if name not in DECODERS:
        raise ValueError(f"decoder is {name!r}; expected one of {list(DECODERS)}")
    return DECODERS[name]
