"""Norms, matrix products and MLPs that the encoder, the decoder and fusion share.

Shapes, here and in every file of models/:
    B batch            T text tokens      P image patches    S keys and values
    N query heads      K kv heads         H head dimension   D encoder width
    E decoder width    F MLP width        V vocabulary       M connections
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def _identity(x):
    return x


@dataclasses.dataclass(frozen=True)
class Placement:
    """Sharding constraints of a model on several devices; they change no value.

    Without them, a compiler that sees weights and batch split over the same devices
    (fsdp) may split the computation as the weights are, with the whole batch on every
    device.

    Attributes:
      shard_activations: activations [B, ...] -> the same, with B split over devices.
      gather_params: a layer's parameter tree -> the same, gathered for the layer's
        computation, kernels in the dtype of the computation.
    """

    shard_activations: Callable[[jax.Array], jax.Array] = _identity
    gather_params: Callable[[dict], dict] = _identity


ONE_DEVICE = Placement()

xavier = nn.initializers.xavier_uniform()


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x[..., I] times kernel[I, O] -> [..., O], as one flat matrix product.

    XLA's CPU backend runs [rows, I] x [I, O] markedly faster than a product with
    leading batch axes; on GPUs and TPUs the two are the same program.
    """
    flat = x.reshape(-1, x.shape[-1])
    return (flat @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], kernel.shape[-1])


def last_axis(vector: jax.Array, x: jax.Array) -> jax.Array:
    """vector[O] as [1, ..., 1, O] with the rank and dtype of x, to broadcast with it."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation, as SigLIP and Gemma use it.

    Nothing but x is kept for its gradient, which is made of a logistic function,
    sigmoid(2 u) = (1 + tanh u) / 2: on a CPU, tanh would be written and read again.
    """
    return nn.gelu(x, approximate=True)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, cotangent):
    y = x.astype(jnp.float32)
    slope = float(np.sqrt(8 / np.pi))  # 2 u = slope * (y + 0.044715 y ** 3)
    share = jax.nn.sigmoid(slope * (y + 0.044715 * y * y * y))
    growth = slope * (1 + 3 * 0.044715 * y * y)
    derivative = share * (1 + y * growth * (1 - share))
    return ((cotangent * derivative).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def add_to_all(x: jax.Array, row: jax.Array) -> jax.Array:
    """x[B, ...] + row[1, ...], in the dtype of x.

    The sum over B that is the gradient of `row` stands behind a barrier: XLA's GPU
    backend lays what it sums over B out with B last, and would take the whole residual
    stream of a transformer along, with a transposition at every norm and product.
    """
    return x + row.astype(x.dtype)


def _add_to_all_forward(x, row):
    return add_to_all(x, row), row


def _add_to_all_backward(row, cotangent):
    flat = cotangent.reshape(cotangent.shape[0], -1)
    total = jax.lax.optimization_barrier(flat).astype(jnp.float32).sum(0)
    return cotangent, total.reshape(row.shape).astype(row.dtype)


add_to_all.defvjp(_add_to_all_forward, _add_to_all_backward)


class Dense(nn.Module):
    """x[..., I] -> [..., O] with bias; parameters `kernel` [I, O] and `bias` [O]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", xavier, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return matmul(x, kernel) + last_axis(bias, x)


class SplitHeads(nn.Module):
    """x[..., D] -> [..., N, H]; parameters `kernel` [D, N, H] and `bias` [N, H], the
    layout of flax's DenseGeneral, which big_vision stores."""

    heads: int
    head_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        split = (self.heads, self.head_dim)
        init = nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (x.shape[-1], *split))
        bias = self.param("bias", nn.initializers.zeros, split)
        y = matmul(x, kernel.reshape(x.shape[-1], -1)) + last_axis(bias, x)
        return y.reshape(*x.shape[:-1], *split)


class MergeHeads(nn.Module):
    """The way back: x[..., N, H] -> [..., D]; `kernel` [N, H, D] and `bias` [D]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (*x.shape[-2:], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.reshape(*x.shape[:-2], -1)
        return matmul(x, kernel.reshape(-1, self.features)) + last_axis(bias, x)


class Einsum(nn.Module):
    """A bare weight `w`, fan-in scaled over `in_axis`."""

    shape: tuple[int, ...]
    in_axis: tuple[int, ...]
    batch_axis: tuple[int, ...] = ()

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.variance_scaling(
            1.0,
            "fan_in",
            "truncated_normal",
            in_axis=self.in_axis,
            out_axis=-1,
            batch_axis=self.batch_axis,
        )
        return self.param("w", init, self.shape)


def split_heads(x: jax.Array, w: jax.Array) -> jax.Array:
    """x[B, T, I] times w[heads, I, H] -> [B, T, heads, H], one flat product."""
    heads, width, head_dim = w.shape
    flat = w.transpose(1, 0, 2).reshape(width, heads * head_dim)
    return matmul(x, flat).reshape(*x.shape[:-1], heads, head_dim)


def merge_heads(x: jax.Array, w: jax.Array) -> jax.Array:
    """x[B, T, N, H] times w[N, H, E] -> [B, T, E], one flat product."""
    flat = x.reshape(*x.shape[:-2], -1)
    return matmul(flat, w.reshape(-1, w.shape[-1]))


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, epsilon 1e-6; statistics in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """x[..., D] normalised over its last axis, times scale[D], plus bias[D]."""
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + 1e-6)
    y = (y - mean) * inverse * last_axis(scale, y) + last_axis(bias, y)
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(kept, cotangent):
    x, mean, inverse, scale = kept
    cotangent = cotangent.astype(jnp.float32)
    # Made anew of x, and not of what the forward pass has: that need not be kept.
    y = x.astype(jnp.float32) * inverse - mean * inverse
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = (cotangent * y).sum(rows), cotangent.sum(rows)
    d_y = cotangent * last_axis(scale, y)
    along = (d_y * y).mean(-1, keepdims=True)
    d_x = inverse * (d_y - d_y.mean(-1, keepdims=True) - y * along)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + scale), computed in float32; by default Gemma's."""

    offset: float = 1.0
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * (self.offset + last_axis(scale, y))).astype(x.dtype)


class MlpBlock(nn.Module):
    """Dense, GELU, Dense: big_vision's MLP, x[..., D] -> [..., D]."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = gelu(Dense(self.mlp_dim, name="Dense_0")(x))
        return Dense(x.shape[-1], name="Dense_1")(hidden)
