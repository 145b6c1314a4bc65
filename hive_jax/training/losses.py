"""Losses: next-token (all tokens, or supervised tokens only) and SigLIP's sigmoid loss.

`supervised_nll` is for training: it computes logits of supervised tokens only, in
chunks, and their gradients in the same pass, so [B, T, V] logits never exist.
`next_token_nll` gives the loss of every token, for evaluation.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hive_jax.models.layers import unembed
from hive_jax.training import sharding

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

    Entry t is the loss of tokens[:, t + 1] given hidden[:, t]. Logits are computed in
    chunks of positions, but a gradient would keep all of them: for training use
    `supervised_nll`.

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

    def nll(inputs):
        hidden, targets = inputs
        logits = unembed(hidden, table_VE, softcap)
        return jax.nn.logsumexp(logits, axis=-1) - gather_token_logits(logits, targets)

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


def gather_token_logits(logits: jax.Array, index: jax.Array) -> jax.Array:
    """logits[..., V] at index[...]."""
    return jnp.where(one_hot(index, logits), logits, 0.0).sum(axis=-1)


def sigmoid_contrastive_loss(
    zimg: jax.Array, ztxt: jax.Array, t: jax.Array, b: jax.Array, valid: jax.Array
) -> jax.Array:
    """SigLIP's loss (arXiv 2303.15343, algorithm 1), a scalar.

    Every pair is a binary decision: zimg[i] and ztxt[j] match iff i == j. Summed over
    the texts of an image, averaged over images.

    Args:
      zimg: L2-normalised image embeddings float[B, D].
      ztxt: L2-normalised text embeddings float[B, D].
      t: temperature, one number.
      b: bias, one number.
      valid: bool[B]; pairs with an invalid sample do not count.
    """
    logits = zimg @ ztxt.T * t.reshape(1, 1) + b.reshape(1, 1)
    sign = 2.0 * jnp.eye(zimg.shape[0]) - 1.0
    pairs = jnp.where(jnp.outer(valid, valid), jax.nn.log_sigmoid(sign * logits), 0.0)
    return -pairs.sum() / jnp.maximum(valid.sum(), 1)


def supervised_nll(
    hidden: jax.Array,
    table_VE: jax.Array,
    softcap: float,
    tokens: jax.Array,
    target: jax.Array,
    mesh: Mesh,
    max_logits: int = MAX_LOGITS,
) -> jax.Array:
    """The sum of `next_token_nll` over supervised tokens, a float32 scalar, in nats.

    Args:
      hidden: [B, T, E] after the final norm, its rows split over data and fsdp.
      table_VE: the tied embedding table.
      softcap: of the logits; 0 for none.
      tokens: int32[B, T].
      target: bool[B, T]; target[:, t] says whether tokens[:, t] is supervised.
      mesh: the devices.
      max_logits: elements of one chunk's logits on each device.
    """
    rows = sharding.batch_sharding(mesh, hidden.shape[0])
    groups = sharding.num_batch_shards(mesh)

    def grouped(x):
        x = x.reshape(groups, -1, *x.shape[2:])
        return jax.lax.with_sharding_constraint(x, rows)

    table = jax.lax.with_sharding_constraint(
        table_VE.astype(hidden.dtype), sharding.vocabulary(mesh, table_VE.shape[0])
    )
    inputs = (hidden[:, :-1], tokens[:, 1:], target[:, 1:])
    chunk = max(1, max_logits // table.shape[0])
    return _nll(table, *map(grouped, inputs), softcap, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _nll(table_VE, hidden_GLE, tokens_GL, target_GL, softcap, chunk):
    inputs = table_VE, hidden_GLE, tokens_GL, target_GL
    return _loss_and_gradients(*inputs, softcap, chunk, (False, False))[0]


def _forward(table_VE, hidden_GLE, tokens_GL, target_GL, softcap, chunk):
    inputs = table_VE, hidden_GLE, tokens_GL, target_GL
    needs_grad = table_VE.perturbed, hidden_GLE.perturbed
    return _loss_and_gradients(*(x.value for x in inputs), softcap, chunk, needs_grad)


def _backward(softcap, chunk, gradients, cotangent):
    scaled = [g if g is None else (cotangent * g).astype(g.dtype) for g in gradients]
    return *scaled, None, None


_nll.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss_and_gradients(table, hidden, tokens, target, softcap, chunk, needs_grad):
    """(loss, (gradient w.r.t. the table, w.r.t. the hidden states)), each gradient None
    unless `needs_grad` (a pair of bools) asks for it."""
    chunk_loss = functools.partial(
        _chunk_loss, table, softcap=softcap, needs_grad=needs_grad
    )
    weight = target.astype(jnp.float32)
    length = hidden.shape[1]
    if chunk >= length:
        loss, (d_table, d_hidden) = chunk_loss(hidden, tokens, weight)
        return loss, (_cast(d_table, table), d_hidden)

    order = jnp.argsort(~target, axis=1, stable=True)  # supervised positions first
    order_padded = jnp.pad(order, ((0, 0), (0, -length % chunk)))
    position = jnp.arange(order_padded.shape[1])[None]
    supervised = target.sum(axis=1, keepdims=True)
    inputs = (
        jnp.take_along_axis(hidden, order_padded[..., None], axis=1),
        jnp.take_along_axis(tokens, order_padded, axis=1),
        (position < supervised).astype(jnp.float32),
    )

    def add(number, sums):
        loss, (d_table, d_hidden) = sums
        start = number * chunk
        rows = (jax.lax.dynamic_slice_in_dim(x, start, chunk, 1) for x in inputs)
        more, (d_more, d_rows) = chunk_loss(*rows)
        if needs_grad[0]:
            d_table += d_more
        if needs_grad[1]:
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_rows, start, 1)
        return loss + more, (d_table, d_hidden)

    d_table = jnp.zeros(table.shape, jnp.float32) if needs_grad[0] else None
    d_hidden = jnp.zeros_like(inputs[0]) if needs_grad[1] else None
    start = jnp.float32(0.0), (d_table, d_hidden)
    chunks = -(-supervised.max() // chunk)
    loss, (d_table, d_hidden) = jax.lax.fori_loop(0, chunks, add, start)
    if needs_grad[1]:
        inverse = jnp.argsort(order, axis=1)[..., None]
        d_hidden = jnp.take_along_axis(d_hidden, inverse, axis=1)
    return loss, (_cast(d_table, table), d_hidden)


def _chunk_loss(table, hidden, tokens, weight, *, softcap, needs_grad):
    """`_loss_and_gradients` of one chunk, with all of its logits at once."""
    logits = unembed(hidden, table, softcap)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    loss = ((normaliser - gather_token_logits(logits, tokens)) * weight).sum()
    error = jnp.exp(logits - normaliser[..., None]) - one_hot(tokens, logits)
    error = error * weight[..., None]
    if softcap:
        error = error * (1.0 - jnp.square(logits / softcap))
    error = error.astype(hidden.dtype)
    d_table = d_hidden = None
    if needs_grad[0]:
        d_table = jnp.einsum(
            "GLV,GLE->VE", error, hidden, preferred_element_type=jnp.float32
        )
    if needs_grad[1]:
        d_hidden = jnp.einsum("GLV,VE->GLE", error, table)
    return loss, (d_table, d_hidden)


def _cast(x: jax.Array | None, like: jax.Array) -> jax.Array | None:
    return None if x is None else x.astype(like.dtype)
