"""Attention (plain and flash), causal masks, rotary positions, the KV cache."""

import flax.struct
import jax
import jax.numpy as jnp

# Below this many keys the weights are so few that XLA's fused softmax does as well.
_MIN_FLASH_KEYS = 256


@flax.struct.dataclass
class KeyValues:
    """key and value [B, S, K, H]. In a KV cache, slot s holds the token at position s."""

    key: jax.Array
    value: jax.Array


def update_kv_cache(
    cache: KeyValues, key: jax.Array, value: jax.Array, position: jax.Array
) -> KeyValues:
    """Writes new keys and values into a KV cache.

    A row's slots after its last token may hold anything: causal attention reads them
    only once they have been written.

    Args:
      cache: of S slots.
      key, value: [B, T, K, H], cast to the cache's dtype.
      position: int32[B, T], the slot of each.

    Returns:
      The updated cache.
    """
    row = jnp.arange(position.shape[0])[:, None]
    return KeyValues(
        cache.key.at[row, position].set(key.astype(cache.key.dtype)),
        cache.value.at[row, position].set(value.astype(cache.value.dtype)),
    )


def attend_to_all(
    query_BTNH: jax.Array,
    key_BSNH: jax.Array,
    value_BSNH: jax.Array,
    *,
    use_flash: bool,
) -> jax.Array:
    """Attention without a mask, scaled by H ** -0.5 -> [B, T, N, H].

    Args:
      query_BTNH, key_BSNH, value_BSNH: with as many kv heads as query heads.
      use_flash: use flash attention where the device supports it.
    """
    scale = query_BTNH.shape[-1] ** -0.5
    if use_flash and supports_flash(query_BTNH, key_BSNH):
        return flash_attention(query_BTNH, key_BSNH, value_BSNH, scale=scale)
    return attend(query_BTNH, key_BSNH, value_BSNH, scale=scale)


def attend_causally(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    *,
    is_sliding: jax.Array,
    window: int,
    scale: float,
    softcap: float,
    use_flash: bool,
) -> jax.Array:
    """Causal self-attention of a whole sequence -> [B, T, N, H].

    Args:
      query_BTNH, key_BTKH, value_BTKH: token t at position t.
      is_sliding: bool scalar; True limits a query to the last `window` positions.
      window: of sliding layers; 0 if the decoder has none.
      scale, softcap: see `attention_with_weights`.
      use_flash: use flash attention where the device supports it.
    """
    length = query_BTNH.shape[1]
    windowed = 0 < window < length
    if use_flash and not softcap and supports_flash(query_BTNH, key_BTKH):

        def run(width, *operands):
            return flash_attention(*operands, scale=scale, causal=True, window=width)

        operands = query_BTNH, key_BTKH, value_BTKH
        if not windowed:
            return run(0, *operands)
        return jax.lax.cond(
            is_sliding, lambda *x: run(window, *x), lambda *x: run(0, *x), *operands
        )
    reach = jnp.where(is_sliding, window, 0) if windowed else 0
    position = jnp.arange(length)[None]
    mask = causal_mask(position, position, reach)
    return attend(query_BTNH, key_BTKH, value_BTKH, mask, scale=scale, softcap=softcap)


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """softmax(scale * Q K^T) V with grouped heads -> [B, T, N, H].

    Args: as for `attention_with_weights`, whose first result this is.
    """
    return attention_with_weights(
        query_BTNH, key_BSKH, value_BSKH, mask_BTS, scale=scale, softcap=softcap
    )[0]


def attention_with_weights(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Grouped-query attention and its weights.

    Softmax and its input are float32 whatever the dtype of the arguments. A compiled
    program leaves the weights out unless they are used.

    Args:
      query_BTNH: query head n attends to kv head n // (N / K).
      key_BSKH, value_BSKH: keys and values.
      mask_BTS: bool, broadcastable; True where a query may attend. A query that may
        attend to no key gets exactly zero.
      scale: factor on the logits Q K^T.
      softcap: squashes the logits to (-softcap, softcap) as Gemma 2 does; 0 for none.

    Returns:
      softmax(scale * Q K^T) V [B, T, N, H], and the softmax float32[B, N, T, S].
    """
    batch, num_queries, heads, head_dim = query_BTNH.shape
    num_keys, kv_heads = key_BSKH.shape[1:3]
    # Heads first, and the queries of a kv head as rows of one product, which is what
    # XLA's CPU backend runs well; GPUs and TPUs choose their own layouts.
    query = query_BTNH.reshape(batch, num_queries, kv_heads, -1, head_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    key, value = key_BSKH.transpose(0, 2, 1, 3), value_BSKH.transpose(0, 2, 1, 3)
    logits = jnp.einsum(
        "BKRH,BKSH->BKRS", query, key, preferred_element_type=jnp.float32
    )
    if softcap:
        logits, scale = jnp.tanh(logits * (scale / softcap)), softcap
    if mask_BTS is not None:
        shape = (batch, num_queries, num_keys)
        mask = jnp.broadcast_to(mask_BTS, shape)[:, None, None]
        mask = jnp.broadcast_to(mask, (batch, 1, heads // kv_heads, *shape[1:]))
        mask = mask.reshape(batch, 1, -1, num_keys)
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    # The sum divides the output and not the weights, for there are fewer of these:
    # each pass over [T, S] costs more than the exponentials on a CPU.
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp((logits - largest) * scale)
    if mask_BTS is not None:
        weights = jnp.where(mask, weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    total = jnp.where(total == 0.0, 1.0, total)  # fully masked queries
    out = jnp.einsum(
        "BKRS,BKSH->BKRH",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    out = (out / total).astype(value.dtype)
    out = out.reshape(batch, kv_heads, -1, num_queries, head_dim)
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, num_queries, heads, head_dim)
    return out, (weights / total).reshape(batch, heads, num_queries, num_keys)


def supports_flash(query: jax.Array, key: jax.Array) -> bool:
    """Whether cuDNN's flash attention supports these operands.

    It needs an NVIDIA GPU (Ampere or later), half precision and a head dimension within
    the limits of jax/_src/cudnn.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H].
    """
    head_dim = query.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and key.shape[1] >= _MIN_FLASH_KEYS
        and head_dim % 8 == 0
        and head_dim <= _max_flash_head_dim()
    )


def _max_flash_head_dim() -> int:
    capability = getattr(jax.devices()[0], "compute_capability", "")
    major = str(capability).partition(".")[0]
    if not major.isdecimal():  # not an NVIDIA GPU, "gfx90a" for example
        return 0
    major = int(major)
    return 256 if major >= 9 else 128 if major >= 8 else 0


def flash_attention(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
) -> jax.Array:
    """softmax(scale * Q K^T) V by cuDNN, without the [T, S] weights in memory.

    Args:
      query_BTNH, key_BSKH, value_BSKH: grouped heads; see `supports_flash`.
      scale: factor on the logits Q K^T.
      causal: position t attends to positions up to t.
      window: with `causal`, only to the last `window` of them, t included; 0 for all.

    Returns:
      [B, T, N, H].
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


def causal_mask(
    query_position: jax.Array,
    key_position: jax.Array,
    window: int | jax.Array = 0,
) -> jax.Array:
    """bool[B, T, S]: key position <= query position, at most `window` - 1 behind.

    Positions 0..4, without a window and with window 2:

        1 0 0 0 0      1 0 0 0 0
        1 1 0 0 0      1 1 0 0 0
        1 1 1 0 0      0 1 1 0 0
        1 1 1 1 0      0 0 1 1 0
        1 1 1 1 1      0 0 0 1 1

    Args:
      query_position: int32[B, T].
      key_position: int32[B, S].
      window: 0 for no limit.
    """
    distance = query_position[:, :, None] - key_position[:, None, :]
    return (distance >= 0) & ((distance < window) | (jnp.asarray(window) == 0))


def rotate(x: jax.Array, position: jax.Array, base: float | jax.Array) -> jax.Array:
    """Rotary position embedding, computed in float32.

    The first and second half of a head are the two coordinates that are rotated, as in
    Gemma (and in transformers' `rotate_half`).

    Args:
      x: [B, T, heads, H].
      position: [B, T], integer or (with linear scaling) fractional.
      base: of the geometric series of wavelengths.

    Returns:
      x rotated, in its dtype.
    """
    half = x.shape[-1] // 2
    exponent = jnp.arange(half, dtype=jnp.float32)[None, None, None] / half
    frequency = 1.0 / jnp.asarray(base, jnp.float32) ** exponent
    angle = position[:, :, None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x.dtype)
