"""The loss to train on, against the plain one and its gradients by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from hive_jax.config import MeshConfig
from hive_jax.training.losses import next_token_nll, supervised_nll
from hive_jax.training.sharding import make_mesh

BATCH, LENGTH, WIDTH, VOCAB = 8, 7, 5, 12
POSITIONS = BATCH * (LENGTH - 1)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32),
        rng.normal(size=(VOCAB, WIDTH)).astype(np.float32),
        rng.integers(0, VOCAB, (BATCH, LENGTH), np.int32),
        rng.random((BATCH, LENGTH)) < 0.4,
    )


def mesh_of(*sizes):
    count = int(np.prod(sizes))
    return make_mesh(MeshConfig(*sizes), jax.devices()[:count])


def plain(hidden, table, tokens, target, softcap):
    nll = next_token_nll(hidden, table, softcap, tokens)
    return (nll * target[:, 1:].astype(np.float32)).sum()


def chunked(chunk, mesh, softcap=0.0):
    def loss(hidden, table, tokens, target):
        return supervised_nll(
            hidden, table, softcap, tokens, target, mesh, chunk * VOCAB
        )

    return loss


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("chunk", [0, 1, 4, 5, POSITIONS - 1, POSITIONS])
def test_value_and_gradients_are_those_of_the_plain_loss(inputs, chunk, softcap):
    """In chunks of 1 (at least), some (the last one not full), nearly all, all."""
    loss = chunked(chunk, mesh_of(1, 1, 1), softcap)
    got, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(*inputs)
    expected, expected_grads = jax.value_and_grad(plain, (0, 1))(*inputs, softcap)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(grads, expected_grads, strict=True):
        assert np.abs(expected_gradient).max() > 1
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss(*inputs), expected, rtol=1e-6)  # without a gradient


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("chunk", [2, POSITIONS])
def test_each_device_sorts_its_own_supervised_positions(inputs, sizes, chunk):
    """Also where one device has far more supervised tokens than the others."""
    hidden, table, tokens, target = inputs
    target = target.copy()
    target[1:4] = False
    target[5] = True
    loss = jax.jit(jax.value_and_grad(chunked(chunk, mesh_of(*sizes)), (0, 1)))
    got, grads = loss(hidden, table, tokens, target)
    expected, expected_grads = jax.value_and_grad(plain, (0, 1))(
        hidden, table, tokens, target, 0.0
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_chunks_hold_no_more_logits_than_allowed(inputs):
    hidden, *others = inputs
    loss = chunked(4, mesh_of(1, 1, 1))
    shapes = {
        variable.aval.shape
        for equation in _equations(jax.make_jaxpr(jax.grad(loss))(hidden, *others))
        for variable in equation.outvars
        if variable.aval.shape[-1:] == (VOCAB,)
    }
    assert (1, 4, VOCAB) in shapes
    assert max(int(np.prod(shape)) for shape in shapes) == 4 * VOCAB


@pytest.mark.parametrize("supervised", [0, 1, 4, 5, 40])
def test_logits_are_computed_for_supervised_tokens_alone(inputs, supervised):
    """Rows that are not supervised may hold anything, and cost nothing."""
    hidden, table, tokens, _ = inputs
    rng = np.random.default_rng(supervised)
    chosen = rng.permutation(POSITIONS)[:supervised]
    target = np.zeros((BATCH, LENGTH), bool)
    target[:, 1:].flat[chosen] = True
    hidden = hidden.copy()
    hidden[:, :-1][~target[:, 1:]] = np.nan
    loss = chunked(1, mesh_of(1, 1, 1))  # no chunk but of supervised tokens
    value, grad = jax.value_and_grad(loss)(hidden, table, tokens, target)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert (np.abs(grad).sum(-1) > 0).sum() == supervised


def test_a_frozen_table_has_no_gradient(inputs):
    def largest(loss, argument):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argument))(*inputs)
        return [
            equation
            for equation in _equations(jaxpr)
            if equation.primitive.name == "dot_general"
            and equation.outvars[0].aval.shape == (VOCAB, WIDTH)
        ]

    loss = chunked(4, mesh_of(1, 1, 1))
    assert largest(loss, 1)
    assert not largest(loss, 0)


def test_bfloat16_hidden_states_give_a_float32_loss_and_their_own_gradient(inputs):
    hidden, *others = inputs
    loss = jax.value_and_grad(chunked(4, mesh_of(1, 1, 1)))
    value, grad = loss(jnp.asarray(hidden, jnp.bfloat16), *others)
    expected, expected_grad = loss(hidden, *others)
    assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    np.testing.assert_allclose(grad.astype(np.float32), expected_grad, atol=0.05)


def _equations(jaxpr):
    """All equations, those inside of others too."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from _equations(inner)
