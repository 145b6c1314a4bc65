"""Matrix products, activations and MLPs shared by the encoder, the decoder and fusion.

Shapes, here and in every file of models/:
    B batch            T text tokens      P image patches    S keys and values
    N query heads      K kv heads         H head dimension   D encoder width
    E decoder width    F MLP width        V vocabulary       M connections
    L layers           I, O inputs and outputs of a matrix product

Precision: parameters are float32 and are cast to the dtype of the activations where they
are used; statistics of norms, softmaxes and logits are float32 in any case.

The custom VJPs (`gelu`, `add_to_batch`, and `layer_norm` in norms.py) change the memory
and time of a gradient, not its value.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.models import layer_stack

xavier = nn.initializers.xavier_uniform()


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies along the last axis, as one flat matrix product.

    Args:
      x: [..., I].
      kernel: [I, O], cast to the dtype of x.

    Returns:
      [..., O] in the dtype of x.
    """
    # XLA's CPU backend runs [B * T, I] x [I, O] markedly faster than a product with
    # leading batch axes; on GPUs and TPUs the two compile to the same program.
    flat = x.reshape(-1, x.shape[-1])
    return (flat @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], kernel.shape[-1])


def expand_to_rank(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Gives a vector the rank and the dtype of an array that it is to broadcast with.

    Args:
      vector: [O], or of any shape with O elements.
      x: [..., O].

    Returns:
      [1, ..., 1, O] in the dtype of x.
    """
    # Explicit, because the tests forbid JAX's implicit rank promotion, which hides bugs.
    return vector.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Applies GELU in its tanh approximation, as SigLIP and Gemma do; any shape.

    x is the only residual of the gradient, which recomputes the rest from x.
    """
    return nn.gelu(x, approximate=True)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, cotangent):
    # gelu(y) = y (1 + tanh u) / 2 = y sigmoid(2 u), u = sqrt(2 / pi) (y + 0.044715 y^3).
    # By the sigmoid, because XLA's CPU backend would write tanh to memory and read it
    # again.
    y = x.astype(jnp.float32)
    # The factor of 2 u: 2 sqrt(2 / pi) = sqrt(8 / pi).
    slope = float(np.sqrt(8 / np.pi))
    gate = jax.nn.sigmoid(slope * (y + 0.044715 * y * y * y))
    d_argument = slope * (1 + 3 * 0.044715 * y * y)  # d(2 u) / dy
    derivative = gate * (1 + y * d_argument * (1 - gate))
    return ((cotangent * derivative).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)

# For each of config.ACTIVATIONS.
_ACTIVATIONS = {"gelu": gelu, "silu": nn.silu}


@jax.custom_vjp
def add_to_batch(x: jax.Array, example: jax.Array) -> jax.Array:
    """Adds the same array, such as a position embedding, to every example of a batch.

    Args:
      x: [B, ...].
      example: [1, ...], cast to the dtype of x.

    Returns:
      [B, ...] in the dtype of x.
    """
    return x + example.astype(x.dtype)


def _add_to_batch_forward(x, example):
    return add_to_batch(x, example), example


def _add_to_batch_backward(example, cotangent):
    # XLA's GPU backend gives an array that it sums over B a layout with B last, and
    # would propagate it to the whole residual stream of a transformer, with a
    # transposition at every norm and product. The barrier confines it to this sum.
    flat = cotangent.reshape(cotangent.shape[0], -1)
    total = jax.lax.optimization_barrier(flat).astype(jnp.float32).sum(0)
    return cotangent, total.reshape(example.shape).astype(example.dtype)


add_to_batch.defvjp(_add_to_batch_forward, _add_to_batch_backward)


class Dense(nn.Module):
    """Dense layer x[..., I] -> [..., O]; parameters `kernel` [I, O] and `bias` [O].

    In place of flax's Dense, for the flat product of `matmul`.

    Attributes:
      features: O.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", xavier, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return matmul(x, kernel) + expand_to_rank(bias, x)


class SplitHeads(nn.Module):
    """Projection to attention heads, x[..., D] -> [..., N, H].

    Parameters `kernel` [D, N, H] and `bias` [N, H] have the layout of flax's
    DenseGeneral, which big_vision stores.

    Attributes:
      heads: N.
      head_dim: H.
    """

    heads: int
    head_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        split = (self.heads, self.head_dim)
        # Fan-in D and fan-out N * H, as of the flat [D, N * H] product.
        init = nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (x.shape[-1], *split))
        bias = self.param("bias", nn.initializers.zeros, split)
        y = matmul(x, kernel.reshape(x.shape[-1], -1)) + expand_to_rank(bias, x)
        return y.reshape(*x.shape[:-1], *split)


class MergeHeads(nn.Module):
    """Output projection of attention heads, x[..., N, H] -> [..., D].

    The inverse of SplitHeads in shape; parameters `kernel` [N, H, D] and `bias` [D].

    Attributes:
      features: D.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Fan-in N * H and fan-out D, as of the flat [N * H, D] product.
        init = nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (*x.shape[-2:], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.reshape(*x.shape[:-2], -1)
        return matmul(x, kernel.reshape(-1, self.features)) + expand_to_rank(bias, x)


class Einsum(nn.Module):
    """A bare weight `w`, named and initialized like big_vision's Einsum.

    Attributes:
      shape: of the weight.
      in_axis: axes that are contracted; their sizes are the fan-in.
      batch_axis: axes that index independent matrices: heads, or keys and values.
    """

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
    """Projects to attention heads without bias, as one flat product.

    Args:
      x: [B, T, I].
      w: [N, I, H], the layout of Gemma's checkpoints.

    Returns:
      [B, T, N, H] in the dtype of x.
    """
    heads, width, head_dim = w.shape
    # I outermost, so that all heads are one matrix [I, N * H].
    flat = w.transpose(1, 0, 2).reshape(width, heads * head_dim)
    return matmul(x, flat).reshape(*x.shape[:-1], heads, head_dim)


def merge_heads(x: jax.Array, w: jax.Array) -> jax.Array:
    """Projects attention heads to the residual stream, as one flat product.

    Args:
      x: [B, T, N, H].
      w: [N, H, E].

    Returns:
      [B, T, E] in the dtype of x.
    """
    # [B, T, N * H] x [N * H, E]: the product also sums over the heads.
    flat = x.reshape(*x.shape[:-2], -1)
    return matmul(flat, w.reshape(-1, w.shape[-1]))


def unembed(hidden: jax.Array, table_VE: jax.Array, softcap: float) -> jax.Array:
    """Computes a decoder's logits.

    Args:
      hidden: [..., E] after the final norm.
      table_VE: table of the output head, cast to the dtype of `hidden`.
      softcap: squashes logits to (-softcap, softcap); 0 for none.

    Returns:
      float32[..., V].
    """
    # Accumulated and returned in float32 for the log-sum-exp over the vocabulary.
    logits = jnp.einsum(
        "...E,VE->...V",
        hidden,
        table_VE.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return jnp.tanh(logits / softcap) * softcap if softcap else logits


class MlpBlock(nn.Module):
    """big_vision's MLP, x[..., D] -> [..., D]: Dense, GELU, Dense.

    Attributes:
      mlp_dim: hidden width F.
    """

    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = gelu(Dense(self.mlp_dim, name="Dense_0")(x))
        return Dense(x.shape[-1], name="Dense_1")(hidden)


class GatedMlp(nn.Module):
    """The decoder's MLP, (activation(x W_gate) * x W_up) W_down; [B, T, E] -> the same.

    Attributes:
      mlp_dim: hidden width F.
      activation: one of config.ACTIVATIONS.
    """

    mlp_dim: int
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        # Axis 0 indexes the two matrices, so that the fan-in of each is E and not 2 E.
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=-2, batch_axis=(0,)
        )
        # W_gate and W_up share one array, as in big_vision; for decoding they are held
        # separately (see `decoder.unstack_layers`).
        shape = (2, width, self.mlp_dim)
        gating = layer_stack.stacked_params(
            self, "gating_einsum", lambda rng: init(rng, shape)
        )
        down = self.param(
            "linear", nn.initializers.lecun_normal(), (self.mlp_dim, width)
        )
        hidden = _ACTIVATIONS[self.activation](matmul(x, gating[0]))
        return matmul(hidden * matmul(x, gating[1]), down)
