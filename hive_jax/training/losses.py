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

# Elements of the logits that a device holds at a time: half a gigabyte in float32,
# enough positions a chunk to keep the matrix units busy.
MAX_LOGITS = 2**27


def next_token_nll(
    hidden: jax.Array,
    table_VE: jax.Array,
    softcap: float,
    tokens: jax.Array,
    max_logits: int = MAX_LOGITS,
) -> jax.Array:
    """Returns the negative log-likelihood of each next token, float32[B, T - 1].

    In nats. Entry t is the loss of tokens[:, t + 1] given hidden[:, t]. Logits are computed in
    chunks of positions, but a gradient would keep all of them: for training use
    `supervised_nll`.

    Args:
      hidden: [B, T, E] after the final norm.
      table_VE: [V, E], the embedding table, or the head of an untied decoder.
      softcap: of the logits; 0 for none.
      tokens: int32[B, T].
      max_logits: elements of one chunk's logits.
    """
    table_VE = table_VE.astype(hidden.dtype)  # once, not in each chunk
    # The last position has no next token; the first token is predicted by none.
    hidden, targets = hidden[:, :-1], tokens[:, 1:]
    batch, length, width = hidden.shape

    def nll(inputs):
        hidden, targets = inputs
        logits = unembed(hidden, table_VE, softcap)
        return jax.nn.logsumexp(logits, axis=-1) - gather_token_logits(logits, targets)

    # Positions, each of all samples of the batch.
    chunk = max(1, max_logits // (batch * table_VE.shape[0]))
    if chunk >= length:
        return nll((hidden, targets))
    # Positions in equal chunks, [count, B, chunk, ...], for one compiled program.
    count = -(-length // chunk)
    padding = count * chunk - length
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    hidden = hidden.reshape(batch, count, chunk, width).swapaxes(0, 1)
    targets = targets.reshape(batch, count, chunk).swapaxes(0, 1)
    out = jax.lax.map(nll, (hidden, targets))
    # [count, B, chunk] -> [B, T - 1], without the padding.
    return out.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def one_hot(index: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns the index as bool[..., V].

    By comparison, because a gather or scatter along V would all-gather logits whose
    vocabulary is sharded.

    Args:
      index: int[...].
      logits: [..., V]; only its shape matters.
    """
    vocabulary = jax.lax.broadcasted_iota(index.dtype, logits.shape, logits.ndim - 1)
    return vocabulary == index[..., None]


def gather_token_logits(logits: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the logits at an index, [...]; sharded vocabularies stay sharded.

    Args:
      logits: float[..., V].
      index: int[...].
    """
    # Selected and not multiplied: 0 * inf would be NaN.
    return jnp.where(one_hot(index, logits), logits, 0.0).sum(axis=-1)


def sigmoid_contrastive_loss(
    zimg: jax.Array, ztxt: jax.Array, t: jax.Array, b: jax.Array, valid: jax.Array
) -> jax.Array:
    """Returns SigLIP's loss (arXiv 2303.15343, algorithm 1), a float32 scalar.

    Every pair is a binary decision: zimg[i] and ztxt[j] match iff i == j. Summed over
    the texts of an image, averaged over images.

    Args:
      zimg: L2-normalized image embeddings float[B, D].
      ztxt: L2-normalized text embeddings float[B, D].
      t: temperature, one number.
      b: bias, one number.
      valid: bool[B]; pairs with an invalid sample do not count.
    """
    logits = zimg @ ztxt.T * t.reshape(1, 1) + b.reshape(1, 1)
    # [B, B]: 1 for the pairs on the diagonal, -1 for all others.
    sign = 2.0 * jnp.eye(zimg.shape[0]) - 1.0
    pairs = jnp.where(jnp.outer(valid, valid), jax.nn.log_sigmoid(sign * logits), 0.0)
    # Without a valid pair the loss is 0, not 0 / 0.
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
    """Returns the sum of `next_token_nll` over supervised tokens, in nats.

    A float32 scalar, with its gradient; the [B, T, V] logits never exist. Each device
    moves the supervised positions of its samples to the front and computes chunks of
    those alone.

    Args:
      hidden: [B, T, E] after the final norm, B sharded over data and fsdp.
      table_VE: [V, E], the embedding table, or the head of an untied decoder.
      softcap: of the logits; 0 for none.
      tokens: int32[B, T].
      target: bool[B, T]; target[:, t] says whether tokens[:, t] is supervised.
      mesh: the device mesh.
      max_logits: elements of one chunk's logits on each device.
    """
    batch_sharding = sharding.batch_sharding(mesh, hidden.shape[0])
    groups = sharding.num_batch_shards(mesh)

    # [B, T, ...] -> [G, L, ...]: one group a batch shard, so that sorting and chunking
    # positions (axis L) needs no communication.
    def grouped(x):
        x = x.reshape(groups, -1, *x.shape[2:])
        return jax.lax.with_sharding_constraint(x, batch_sharding)

    # Gathered over fsdp once here, not in each chunk.
    table = jax.lax.with_sharding_constraint(
        table_VE.astype(hidden.dtype),
        sharding.vocabulary_sharding(mesh, table_VE.shape[0]),
    )
    inputs = (hidden[:, :-1], tokens[:, 1:], target[:, 1:])
    chunk = max(1, max_logits // table.shape[0])
    return _nll(table, *map(grouped, inputs), softcap, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _nll(table_VE, hidden_GLE, tokens_GL, target_GL, softcap, chunk):
    """Summed loss of supervised positions; its VJP keeps gradients, not logits."""
    inputs = table_VE, hidden_GLE, tokens_GL, target_GL
    return _loss_and_gradients(*inputs, softcap, chunk, (False, False))[0]


def _forward(table_VE, hidden_GLE, tokens_GL, target_GL, softcap, chunk):
    # `perturbed` says what is differentiated: a frozen table costs no [V, E] gradient.
    inputs = table_VE, hidden_GLE, tokens_GL, target_GL
    needs_grad = table_VE.perturbed, hidden_GLE.perturbed
    return _loss_and_gradients(*(x.value for x in inputs), softcap, chunk, needs_grad)


def _backward(softcap, chunk, gradients, cotangent):
    # The loss is a scalar, so its cotangent is a factor on the gradients that the
    # forward pass computed. Tokens and targets are not differentiable: None.
    scaled = [g if g is None else (cotangent * g).astype(g.dtype) for g in gradients]
    return *scaled, None, None


_nll.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss_and_gradients(table, hidden, tokens, target, softcap, chunk, needs_grad):
    """Returns (loss, (d_table, d_hidden)); a gradient that the pair of bools
    `needs_grad` does not request is None."""
    chunk_loss = functools.partial(
        _chunk_loss, table, softcap=softcap, needs_grad=needs_grad
    )
    weight = target.astype(jnp.float32)
    length = hidden.shape[1]
    if chunk >= length:
        loss, (d_table, d_hidden) = chunk_loss(hidden, tokens, weight)
        return loss, (_cast(d_table, table), d_hidden)

    order = jnp.argsort(~target, axis=1, stable=True)  # supervised positions first
    # Padding repeats position 0, with weight 0.
    order_padded = jnp.pad(order, ((0, 0), (0, -length % chunk)))
    position = jnp.arange(order_padded.shape[1])[None]
    supervised = target.sum(axis=1, keepdims=True)
    # [G, L, ...], L padded to a multiple of the chunk. In this order the supervised
    # positions are the first ones, so that the weight needs no gather.
    inputs = (
        jnp.take_along_axis(hidden, order_padded[..., None], axis=1),
        jnp.take_along_axis(tokens, order_padded, axis=1),
        (position < supervised).astype(jnp.float32),
    )

    def add_chunk(number, sums):
        loss, (d_table, d_hidden) = sums
        start = number * chunk
        slices = (jax.lax.dynamic_slice_in_dim(x, start, chunk, 1) for x in inputs)
        chunk_nll, (d_table_chunk, d_hidden_chunk) = chunk_loss(*slices)
        if needs_grad[0]:
            d_table += d_table_chunk
        if needs_grad[1]:
            d_hidden = jax.lax.dynamic_update_slice_in_dim(
                d_hidden, d_hidden_chunk, start, 1
            )
        return loss + chunk_nll, (d_table, d_hidden)

    # The table's gradient sums over chunks, so it is float32 whatever the table is.
    d_table = jnp.zeros(table.shape, jnp.float32) if needs_grad[0] else None
    d_hidden = jnp.zeros_like(inputs[0]) if needs_grad[1] else None
    start = jnp.float32(0.0), (d_table, d_hidden)
    # As many as the fullest group needs, a number known only at run time.
    chunks = -(-supervised.max() // chunk)
    loss, (d_table, d_hidden) = jax.lax.fori_loop(0, chunks, add_chunk, start)
    if needs_grad[1]:  # back to the order of the positions
        # Chunks that did not run leave gradients of 0: they have no supervised
        # position. The inverse has no padding, so that padding is dropped here.
        inverse = jnp.argsort(order, axis=1)[..., None]
        d_hidden = jnp.take_along_axis(d_hidden, inverse, axis=1)
    return loss, (_cast(d_table, table), d_hidden)


def _chunk_loss(table, hidden, tokens, weight, *, softcap, needs_grad):
    """`_loss_and_gradients` of one chunk, with all of its logits at once."""
    logits = unembed(hidden, table, softcap)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    loss = ((log_normalizer - gather_token_logits(logits, tokens)) * weight).sum()
    # The gradient of cross-entropy with respect to the logits: softmax - one-hot.
    error = jnp.exp(logits - log_normalizer[..., None]) - one_hot(tokens, logits)
    error = error * weight[..., None]
    if softcap:  # logits = softcap * tanh(x / softcap): the derivative of tanh
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
