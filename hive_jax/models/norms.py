"""LayerNorm of the encoder and RMSNorm of the decoder; statistics are float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.layers import expand_to_rank


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, epsilon 1e-6; statistics in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalizes over the last axis, with epsilon 1e-6, that of big_vision and SigLIP.

    Args:
      x: [..., D].
      scale: float32[D].
      bias: float32[D].

    Returns:
      [..., D] in the dtype of x; statistics and products are float32.
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    # Two passes: E[y^2] - mean^2 would lose digits where the mean is large.
    inverse = jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + 1e-6)
    y = (y - mean) * inverse * expand_to_rank(scale, y) + expand_to_rank(bias, y)
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(residuals, cotangent):
    x, mean, inverse, scale = residuals
    cotangent = cotangent.astype(jnp.float32)
    # Recomputed from x, so that the forward pass need not store it: in bfloat16, x is
    # half the size of the float32 y, and other layers store it anyway.
    y = x.astype(jnp.float32) * inverse - mean * inverse
    # Scale and bias act on every position alike, so their gradients sum over these.
    leading = tuple(range(x.ndim - 1))
    d_scale, d_bias = (cotangent * y).sum(leading), cotangent.sum(leading)
    d_y = cotangent * expand_to_rank(scale, y)
    # Mean and variance depend on x: subtract the components of d_y along 1 and along y.
    along_y = (d_y * y).mean(-1, keepdims=True)
    d_x = inverse * (d_y - d_y.mean(-1, keepdims=True) - y * along_y)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nn.Module):
    """RMSNorm x / rms(x) * (offset + scale) over the last axis, computed in float32.

    Attributes:
      offset: 1 for Gemma, whose `scale` starts at 0; 0 for the usual RMSNorm, whose
        `scale` starts at 1.
      eps: added to the mean square.
    """

    offset: float = 1.0
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        # Multiplied before the cast, as big_vision and transformers' Gemma do.
        return (y * (self.offset + expand_to_rank(scale, y))).astype(x.dtype)
