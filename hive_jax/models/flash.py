"""Flash attention of cuDNN, which GPUs have: no [T, S] weights in memory."""

import jax
import jax.numpy as jnp

# Below this many keys the weights are so few that XLA's fused softmax does as well.
_MIN_KEYS = 256


def serves(query: jax.Array, key: jax.Array) -> bool:
    """Whether cuDNN computes this attention: on a GPU (Ampere or later), in half
    precision, with a head dimension that it knows (jax/_src/cudnn)."""
    head_dim = query.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and key.shape[1] >= _MIN_KEYS
        and head_dim % 8 == 0
        and head_dim <= _largest_head_dim()
    )


def _largest_head_dim() -> int:
    capability = getattr(jax.devices()[0], "compute_capability", "")
    major = str(capability).partition(".")[0]
    if not major.isdecimal():  # "gfx90a", say: not a GPU of NVIDIA's
        return 0
    major = int(major)
    return 256 if major >= 9 else 128 if major >= 8 else 0


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
) -> jax.Array:
    """softmax(scale * Q K^T) V with grouped heads -> [B, T, N, H].

    With `causal`, position t looks at positions up to t, and with a `window` at the
    last `window` of them, itself included.
    """
    return jax.nn.dot_product_attention(
        query_BTNH,
        key_BSKH,
        value_BSKH,
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )
