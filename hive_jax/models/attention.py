"""Attention: among all, causal, or from one sequence to another; rotary positions."""

import jax
import jax.numpy as jnp

from hive_jax.models import flash


def attend_to_all(
    query_BTNH: jax.Array,
    key_BSNH: jax.Array,
    value_BSNH: jax.Array,
    *,
    use_flash: bool,
) -> jax.Array:
    """Every query looks at every key -> [B, T, N, H]; scale H ** -0.5."""
    scale = query_BTNH.shape[-1] ** -0.5
    if use_flash and flash.serves(query_BTNH, key_BSNH):
        return flash.attend(query_BTNH, key_BSNH, value_BSNH, scale=scale)
    return attend(query_BTNH, key_BSNH, value_BSNH, scale=scale)


def attend_causally(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    *,
    local: jax.Array,
    window: int,
    scale: float,
    softcap: float,
    use_flash: bool,
) -> jax.Array:
    """Position t looks at positions up to t -> [B, T, N, H].

    Args:
      local: bool scalar; if True, only at the last `window` of them.
      window: of local layers; 0 where there are none.
      scale, softcap: as for `attend`.
      use_flash: where the platform has it.
    """
    length = query_BTNH.shape[1]
    windowed = 0 < window < length
    if use_flash and not softcap and flash.serves(query_BTNH, key_BTKH):

        def run(width, *operands):
            return flash.attend(*operands, scale=scale, causal=True, window=width)

        operands = query_BTNH, key_BTKH, value_BTKH
        if not windowed:
            return run(0, *operands)
        return jax.lax.cond(
            local, lambda *x: run(window, *x), lambda *x: run(0, *x), *operands
        )
    reach = jnp.where(local, window, 0) if windowed else 0
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

    See `attend_and_tell`, which also says where each query looked.
    """
    how = {"scale": scale, "softcap": softcap}
    return attend_and_tell(query_BTNH, key_BSKH, value_BSKH, mask_BTS, **how)[0]


def attend_and_tell(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale * Q K^T) V [B, T, N, H], and the softmax float32[B, N, T, S], which
    a compiled program leaves out where nothing reads it.

    Query head n reads kv head n // (N / K). `mask_BTS` (bool, broadcastable) is
    True where a query may look; a query that may look nowhere gets exactly zero.
    `softcap` squashes the logits to (-softcap, softcap) as Gemma 2 does. Softmax
    and its input are float32 whatever the dtype of the arguments.
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
    total = jnp.where(total == 0.0, 1.0, total)  # of queries that look nowhere
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


def causal_mask(
    query_position: jax.Array,
    key_position: jax.Array,
    window: int | jax.Array = 0,
) -> jax.Array:
    """bool[B, T, S]: key position <= query position, at most `window` - 1 behind.

    Positions are int32[B, T] and int32[B, S]; window 0 means no limit. Positions
    0..4, without a window and with window 2:

        1 0 0 0 0      1 0 0 0 0
        1 1 0 0 0      1 1 0 0 0
        1 1 1 0 0      0 1 1 0 0
        1 1 1 1 0      0 0 1 1 0
        1 1 1 1 1      0 0 0 1 1
    """
    distance = query_position[:, :, None] - key_position[:, None, :]
    return (distance >= 0) & ((distance < window) | (jnp.asarray(window) == 0))


def rotate(x: jax.Array, position: jax.Array, base: float | jax.Array) -> jax.Array:
    """Rotary position embedding of x[B, T, heads, H] at [B, T] positions.

    The first and second half of a head are the two coordinates that turn, as in
    Gemma (and in transformers' `rotate_half`). Computed in float32.
    """
    half = x.shape[-1] // 2
    exponent = jnp.arange(half, dtype=jnp.float32)[None, None, None] / half
    frequency = 1.0 / jnp.asarray(base, jnp.float32) ** exponent
    angle = position[:, :, None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)
