"""Next-token cross-entropy without holding all logits, and SigLIP's sigmoid loss."""

import jax
import jax.numpy as jnp

from hive_jax.models.gemma import unembed

# Logits held at a time, as a number of elements: [B, chunk of T, V].
_MAX_LOGITS = 2**24


def next_token_nll(
    hidden: jax.Array,
    table_VE: jax.Array,
    softcap: float,
    tokens: jax.Array,
    max_logits: int = _MAX_LOGITS,
) -> jax.Array:
    """Negative log-likelihood of each next token, float32[B, T - 1], in nats.

    Entry t is the loss of tokens[:, t + 1] given hidden[:, t]. Logits are made for a
    chunk of positions at a time and made again in the backward pass, so that
    [B, T, V] is never held for large vocabularies.

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

    def nll(hidden, targets):
        logits = unembed(hidden, table_VE, softcap)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    chunk = max(1, max_logits // (batch * table_VE.shape[0]))
    if chunk >= length:
        return nll(hidden, targets)
    count = -(-length // chunk)
    padding = count * chunk - length
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    hidden = hidden.reshape(batch, count, chunk, width).swapaxes(0, 1)
    targets = targets.reshape(batch, count, chunk).swapaxes(0, 1)
    _, out = jax.lax.scan(
        lambda _, part: (None, jax.checkpoint(nll)(*part)), None, (hidden, targets)
    )
    return out.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def sigmoid_contrastive_loss(
    zimg: jax.Array, ztxt: jax.Array, t: jax.Array, b: jax.Array
) -> jax.Array:
    """SigLIP's loss (arXiv 2303.15343, algorithm 1), a scalar.

    Every pair is a binary decision: zimg[i] and ztxt[j] belong together iff i == j.
    Summed over the texts of an image, averaged over images. `t` and `b` hold one
    number each.
    """
    logits = zimg @ ztxt.T * t.reshape(1, 1) + b.reshape(1, 1)
    sign = 2.0 * jnp.eye(zimg.shape[0]) - 1.0
    return -jax.nn.log_sigmoid(sign * logits).sum(axis=-1).mean()
