"""The caption loss to train on: logits of supervised tokens alone, a chunk at a time.

The gradient is made from a chunk's logits at once, so that they are neither kept for
the backward pass nor made again there.

    G groups of rows, one a device of data x fsdp      L positions of a group
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hive_jax.models.decoder import unembed
from hive_jax.training import sharding
from hive_jax.training.losses import MAX_LOGITS, chosen, one_hot


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
    groups = sharding.batch_parts(mesh)

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
    wanted = table_VE.perturbed, hidden_GLE.perturbed
    return _loss_and_gradients(*(x.value for x in inputs), softcap, chunk, wanted)


def _backward(softcap, chunk, gradients, cotangent):
    scaled = [g if g is None else (cotangent * g).astype(g.dtype) for g in gradients]
    return *scaled, None, None


_nll.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss_and_gradients(table, hidden, tokens, target, softcap, chunk, wanted):
    """(loss, (gradient by the table, by the hidden states)); None if not `wanted`."""
    part = functools.partial(_part, table, softcap=softcap, wanted=wanted)
    weight = target.astype(jnp.float32)
    length = hidden.shape[1]
    if chunk >= length:
        loss, (d_table, d_hidden) = part(hidden, tokens, weight)
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
        more, (d_more, d_rows) = part(*rows)
        if wanted[0]:
            d_table += d_more
        if wanted[1]:
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_rows, start, 1)
        return loss + more, (d_table, d_hidden)

    d_table = jnp.zeros(table.shape, jnp.float32) if wanted[0] else None
    d_hidden = jnp.zeros_like(inputs[0]) if wanted[1] else None
    start = jnp.float32(0.0), (d_table, d_hidden)
    chunks = -(-supervised.max() // chunk)
    loss, (d_table, d_hidden) = jax.lax.fori_loop(0, chunks, add, start)
    if wanted[1]:
        place = jnp.argsort(order, axis=1)[..., None]
        d_hidden = jnp.take_along_axis(d_hidden, place, axis=1)
    return loss, (_cast(d_table, table), d_hidden)


def _part(table, hidden, tokens, weight, *, softcap, wanted):
    """`_loss_and_gradients` of some positions, all of their logits at once."""
    logits = unembed(hidden, table, softcap)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    loss = ((normaliser - chosen(logits, tokens)) * weight).sum()
    error = jnp.exp(logits - normaliser[..., None]) - one_hot(tokens, logits)
    error = error * weight[..., None]
    if softcap:
        error = error * (1.0 - jnp.square(logits / softcap))
    error = error.astype(hidden.dtype)
    d_table = d_hidden = None
    if wanted[0]:
        d_table = jnp.einsum(
            "GLV,GLE->VE", error, hidden, preferred_element_type=jnp.float32
        )
    if wanted[1]:
        d_hidden = jnp.einsum("GLV,VE->GLE", error, table)
    return loss, (d_table, d_hidden)


def _cast(x: jax.Array | None, like: jax.Array) -> jax.Array | None:
    return None if x is None else x.astype(like.dtype)
