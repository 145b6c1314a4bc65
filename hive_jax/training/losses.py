"""Next-token cross-entropy for evaluation, and SigLIP's sigmoid loss."""

import jax
import jax.numpy as jnp

from hive_jax.models.decoder import unembed

# Elements of the logits that a device holds at a time: half a gigabyte.
MAX_LOGITS = 2**27


def next_token_nll(
    hidden: jax.Array,
    table_VE: jax.Array,
    softcap: float,
    tokens: jax.Array,
    max_logits: int = MAX_LOGITS,
) -> jax.Array:
    """Negative log-likelihood of each next token, float32[B, T - 1], in nats.

    Entry t is the loss of tokens[:, t + 1] given hidden[:, t]. Logits are made for a
    chunk of positions at a time, but would all be kept for a gradient; to train, see
    `supervised.py`.

    Args:
      hidden: [B, T, E] after the final norm.
      table_VE: the tied embedding table.
      softcap: of the logits; 0 for none.
      tokens: int32[B, T].
      max_logits: elements of one chunk's logits.
    """
    table_VE = table_VE.astype(hidden.dtype)  # once, not in each chunk
    hidden, targets = hidden[:, :-1], tokens[:, 1:]
    batch, length, width = hidden.shape

    def nll(part):
        logits = unembed(part[0], table_VE, softcap)
        return jax.nn.logsumexp(logits, axis=-1) - chosen(logits, part[1])

    chunk = max(1, max_logits // (batch * table_VE.shape[0]))
    if chunk >= length:
        return nll((hidden, targets))
    count = -(-length // chunk)
    padding = count * chunk - length
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    hidden = hidden.reshape(batch, count, chunk, width).swapaxes(0, 1)
    targets = targets.reshape(batch, count, chunk).swapaxes(0, 1)
    out = jax.lax.map(nll, (hidden, targets))
    return out.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def one_hot(index: jax.Array, logits: jax.Array) -> jax.Array:
    """index[...] as bool[..., V], by comparison: a gather or scatter along V would
    collect a vocabulary that is split over devices."""
    vocabulary = jax.lax.broadcasted_iota(index.dtype, logits.shape, logits.ndim - 1)
    return vocabulary == index[..., None]


def chosen(logits: jax.Array, index: jax.Array) -> jax.Array:
    """logits[..., V] at index[...]."""
    return jnp.where(one_hot(index, logits), logits, 0.0).sum(axis=-1)


def sigmoid_contrastive_loss(
    zimg: jax.Array, ztxt: jax.Array, t: jax.Array, b: jax.Array, there: jax.Array
) -> jax.Array:
    """SigLIP's loss (arXiv 2303.15343, algorithm 1), a scalar.

    Every pair is a binary decision: zimg[i] and ztxt[j] belong together iff i == j.
    Summed over the texts of an image, averaged over images. `t` and `b` hold one
    number each. Pairs count where both are `there`, bool[B].
    """
    logits = zimg @ ztxt.T * t.reshape(1, 1) + b.reshape(1, 1)
    sign = 2.0 * jnp.eye(zimg.shape[0]) - 1.0
    pairs = jnp.where(jnp.outer(there, there), jax.nn.log_sigmoid(sign * logits), 0.0)
    return -pairs.sum() / jnp.maximum(there.sum(), 1)
