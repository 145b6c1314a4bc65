"""Norms and activations whose gradients are written by hand, against automatic ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.models.layers import gelu
from hive_jax.models.norms import layer_norm


def plain_layer_norm(x, scale, bias):
    """The textbook, in the dtype of x."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    shape = (1,) * (x.ndim - 1) + (-1,)
    x = (x - mean) / jnp.sqrt(variance + 1e-6)
    return x * scale.reshape(shape) + bias.reshape(shape)


def pulled_back(function, inputs, cotangent):
    """The result of a function, and its gradients."""
    out, pull = jax.vjp(function, *inputs)
    return out, pull(cotangent.astype(out.dtype))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(got, expected, **tolerance):
    def compare(one, other):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, **tolerance)

    jax.tree.map(compare, got, expected)


@pytest.mark.parametrize("rows", [(5,), (2, 3)])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_layer_norm_gradients_equal_automatic_differentiation(rows, offset):
    inputs = normal(*rows, 24) * 2 + offset, normal(24, seed=1), normal(24, seed=2)
    cotangent = normal(*rows, 24, seed=3)
    got = pulled_back(layer_norm, inputs, cotangent)
    expected = pulled_back(plain_layer_norm, inputs, cotangent)
    assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_layer_norm_matches_float32_up_to_rounding():
    x, cotangent = (normal(6, 64, seed=s).astype(jnp.bfloat16) for s in (0, 3))
    weights = normal(64, seed=1), normal(64, seed=2)
    out, gradients = pulled_back(layer_norm, (x, *weights), cotangent)
    assert [g.dtype for g in (out, *gradients)] == [jnp.bfloat16] * 2 + ["float32"] * 2
    exact = (x.astype(jnp.float32), *weights)
    expected = pulled_back(plain_layer_norm, exact, cotangent.astype(jnp.float32))
    assert_close((out, gradients), expected, atol=2**-8, rtol=2**-8)


def gelu_and_slope(x):
    """By tanh, in float64."""
    factor = np.sqrt(2 / np.pi)
    tanh = np.tanh(factor * (x + 0.044715 * x**3))
    growth = factor * (1 + 3 * 0.044715 * x**2)
    return x * (1 + tanh) / 2, (1 + tanh + x * (1 - tanh**2) * growth) / 2


def test_gelu_gradient_equals_its_analytic_derivative():
    x = np.concatenate([np.linspace(-12.0, 12.0, 481), [-1e4, 1e4]])
    ones = jnp.ones(x.shape)
    out, (gradient,) = pulled_back(gelu, (jnp.asarray(x, jnp.float32),), ones)
    expected = gelu_and_slope(x)
    assert_close((out, gradient), expected, atol=1e-6, rtol=1e-6)


def test_bfloat16_gelu_gradient_matches_float64_up_to_rounding():
    x = normal(400).astype(jnp.bfloat16) * 3
    out, (gradient,) = pulled_back(gelu, (x,), jnp.ones_like(x))
    assert out.dtype == gradient.dtype == jnp.bfloat16
    expected = gelu_and_slope(np.asarray(x, np.float64))
    assert_close(gradient, expected[1], atol=2**-8, rtol=2**-8)
