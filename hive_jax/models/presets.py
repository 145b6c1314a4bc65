"""Named sizes of encoders and decoders.

The tests compare them with big_vision's and with transformers' own configurations.
"""

from hive_jax.models.config import DecoderConfig, SiglipConfig

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

# Shared by Llama and all that descends from it, as far as DecoderConfig's defaults,
# which are Gemma's, differ.
_LLAMA = {
    "activation": "silu",
    "norm_offset": 0.0,
    "norm_eps": 1e-5,
    "embed_scale": False,
    "head_dim": 64,
}
_QWEN = _LLAMA | {
    "vocab_size": 151_936,
    "norm_eps": 1e-6,
    "rope_base": 1_000_000.0,
    "local_rope_base": 1_000_000.0,
}
_SMOLLM2 = _LLAMA | {
    "vocab_size": 49_152,
    "rope_base": 100_000.0,
    "local_rope_base": 100_000.0,
}
_MOBILELLM = _LLAMA | {"vocab_size": 32_000}

DECODERS = {
    "tiny": DecoderConfig(qk_norm=True, post_norms=True),
    # The same size as a Llama, for comparisons.
    "tiny_llama": DecoderConfig(**_LLAMA | {"head_dim": 16}),
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
    "llama3_2_1b": DecoderConfig(
        vocab_size=128_256,
        width=2048,
        depth=16,
        mlp_dim=8192,
        num_heads=32,
        num_kv_heads=8,
        rope_base=500_000.0,
        local_rope_base=500_000.0,
        rope_factor=32.0,
        rope_original_length=8192,
        **_LLAMA,
    ),
    "mobilellm_350m": DecoderConfig(
        width=960, depth=32, mlp_dim=2560, num_heads=15, num_kv_heads=5, **_MOBILELLM
    ),
    # The paper's teacher.
    "mobilellm_600m": DecoderConfig(
        width=1152, depth=40, mlp_dim=3072, num_heads=18, num_kv_heads=6, **_MOBILELLM
    ),
    "smollm2_135m": DecoderConfig(
        width=576, depth=30, mlp_dim=1536, num_heads=9, num_kv_heads=3, **_SMOLLM2
    ),
    "smollm2_360m": DecoderConfig(
        width=960, depth=32, mlp_dim=2560, num_heads=15, num_kv_heads=5, **_SMOLLM2
    ),
    # The instruction-tuned model has the same architecture, and so has Qwen 2.
    "qwen2_5_0_5b": DecoderConfig(
        width=896,
        depth=24,
        mlp_dim=4864,
        num_heads=14,
        num_kv_heads=2,
        qkv_bias=True,
        **_QWEN,
    ),
    "qwen3_0_6b": DecoderConfig(
        width=1024,
        depth=28,
        mlp_dim=3072,
        num_heads=16,
        num_kv_heads=8,
        qk_norm=True,
        **_QWEN | {"head_dim": 128},
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
