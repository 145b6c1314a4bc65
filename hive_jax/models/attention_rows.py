"""Softmax attention by rows, before the division by the sum: what a joint softmax adds up.

The queries of all heads that share a kv head are the rows R of one product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class AttentionRows(NamedTuple):
    """Attention before the division by the softmax's sum; see `attend_by_rows`.

    Attributes:
      out: float32[B, K, R, H], sums of values times exponentials.
      exponentials: float32[B, K, R, S], of the logits minus the largest.
      total: float32[B, K, R, 1], sums of the exponentials.
      largest: float32[B, K, R, 1], logits before the scale.
      scale: of the logits.
    """

    out: jax.Array
    exponentials: jax.Array
    total: jax.Array
    largest: jax.Array
    scale: float

    def weights_by_head(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the softmax, float32[B, N, T, S], for queries of `shape` [B, T, N, H]."""
        batch, num_queries, heads, _ = shape
        # Rows R are ordered by head, then by query, so that [K, R] is [N, T].
        return (self.exponentials / self.total).reshape(batch, heads, num_queries, -1)

    def log_total(self) -> jax.Array:
        """Returns the logarithm of each softmax's sum, float32[B, K, R, 1]."""
        return self.largest * self.scale + jnp.log(self.total)


def attend_by_rows(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None,
    scale: float,
    softcap: float,
) -> AttentionRows:
    """Computes attention with the queries of all heads of a kv head as rows R.

    The arguments are those of `attention_with_weights`.
    """
    batch, num_queries, heads, head_dim = query_BTNH.shape
    num_keys, kv_heads = key_BSKH.shape[1:3]
    # R = N / K * T: the queries of all heads that share a kv head are rows of one
    # product, which is fast on XLA's CPU backend; GPUs and TPUs choose their own layout.
    # [B, T, N, H] -> [B, T, K, N / K, H] -> [B, K, N / K, T, H] -> [B, K, R, H].
    query = query_BTNH.reshape(batch, num_queries, kv_heads, -1, head_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    key, value = key_BSKH.transpose(0, 2, 1, 3), value_BSKH.transpose(0, 2, 1, 3)
    logits = jnp.einsum(
        "BKRH,BKSH->BKRS", query, key, preferred_element_type=jnp.float32
    )
    if softcap:
        # The scale belongs inside of tanh; afterwards `softcap` takes its place.
        logits, scale = jnp.tanh(logits * (scale / softcap)), softcap
    if mask_BTS is not None:
        shape = (batch, num_queries, num_keys)
        # [B, 1, N / K, T, S] -> [B, 1, R, S]: all heads have the same mask.
        mask = jnp.broadcast_to(mask_BTS, shape)[:, None, None]
        mask = jnp.broadcast_to(mask, (batch, 1, heads // kv_heads, *shape[1:]))
        mask = mask.reshape(batch, 1, -1, num_keys)
        # The smallest finite value: -inf - (-inf) would be NaN in fully masked queries.
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    # Softmax by hand: its sum divides the output [T, H] and not the weights [T, S],
    # because each pass over [T, S] costs more than the exponentials on a CPU. The maximum
    # prevents overflow and cancels out, so that it needs no gradient.
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp((logits - largest) * scale)
    if mask_BTS is not None:
        # Needed where all keys are masked: logits equal to the maximum give exp(0) = 1.
        weights = jnp.where(mask, weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    total = jnp.where(total == 0.0, 1.0, total)  # fully masked queries: 0 / 1
    # Weights in the dtype of the values for a half-precision product, summed in float32.
    out = jnp.einsum(
        "BKRS,BKSH->BKRH",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return AttentionRows(out, weights, total, largest, scale)


def rows_to_heads(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverts the order of `attend_by_rows`: [B, K, R, H] -> [B, T, N, H].

    Args:
      rows: outputs by row.
      shape: of the queries, [B, T, N, H].
    """
    batch, num_queries, heads, head_dim = shape
    # [B, K, R, H] -> [B, K, N / K, T, H] -> [B, T, K, N / K, H] -> [B, T, N, H].
    out = rows.reshape(batch, rows.shape[1], -1, num_queries, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, num_queries, heads, head_dim)
