"""The transformer of both SigLIP towers, and the attention pooling of the image tower.

Parameters carry the names of big_vision's models/vit.py, with the layers stacked on a
leading axis.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models import layer_stack
from hive_jax.models.attention import attend_to_all
from hive_jax.models.execution import Execution
from hive_jax.models.layers import (
    MergeHeads,
    MlpBlock,
    SplitHeads,
)
from hive_jax.models.norms import LayerNorm
from hive_jax.models.placement import Placement, apply_block


class Attention(nn.Module):
    """Multi-head attention with biases, from x[B, T, D] to y[B, S, D] -> [B, T, D]."""

    num_heads: int
    flash: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        width, heads = x.shape[-1], self.num_heads
        head_dim = width // heads
        query = SplitHeads(heads, head_dim, name="query")(x)
        key = SplitHeads(heads, head_dim, name="key")(y)
        value = SplitHeads(heads, head_dim, name="value")(y)
        # SigLIP has no mask in either tower: the padding of texts is attended to.
        out = attend_to_all(query, key, value, use_flash=self.flash)
        return MergeHeads(width, name="out")(out)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block, x[B, P, D] -> [B, P, D]."""

    mlp_dim: int
    num_heads: int
    flash: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = LayerNorm(name="LayerNorm_0")(x)
        attention = Attention(
            self.num_heads, self.flash, name="MultiHeadDotProductAttention_0"
        )
        x = x + attention(y, y)
        y = LayerNorm(name="LayerNorm_1")(x)
        return x + MlpBlock(self.mlp_dim, name="MlpBlock_0")(y)


class Transformer(nn.Module):
    """Transformer blocks and a final norm, of either tower."""

    depth: int
    mlp_dim: int
    num_heads: int
    execution: Execution
    placement: Placement

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        depths: tuple[int, ...] = (),
        offsets: jax.Array | None = None,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Runs the blocks.

        Args:
          x: embeddings [B, P, D].
          depths: blocks whose outputs to return, counted from 1.
          offsets: [L, B, P, D], added to the outputs of the blocks.

        Returns:
          The normalized output [B, P, D] and [B, P, D] for each of `depths`.
        """
        scan, remat = self.execution.scan, self.execution.remat
        flash = self.execution.flash
        # parent=None: no submodule, but a function of parameters that are stacked here.
        block = EncoderBlock(self.mlp_dim, self.num_heads, flash, parent=None)
        # One example: a block's parameters do not depend on the batch size.
        init = layer_stack.stacked_init(block, self.depth, x[:1])
        layers = layer_stack.stacked_params(self, "encoderblock", init)
        placement = self.placement

        def apply(layer, x):
            params, offset = layer
            x = placement.shard_activations(apply_block(block, placement, params, x))
            # Offsets of zero make the gradient at a block's output that of an input.
            return x if offset is None else x + offset.astype(x.dtype)

        # Blocks constrain their outputs; this is the input of the first one.
        x = placement.shard_activations(x)
        ends = sorted({*depths, self.depth})
        at_depth = {}
        # Segments end where features are read, so that a scan stores no other outputs.
        segments = layer_stack.split_layers((layers, offsets), ends)
        for end, segment in zip(ends, segments, strict=True):
            x = layer_stack.run_layers(apply, segment, x, scan=scan, remat=remat)
            at_depth[end] = x
        features = [at_depth[depth] for depth in depths]
        return LayerNorm(name="encoder_norm")(x), features


class MAPHead(nn.Module):
    """Multi-head attention pooling with one learned query, x[B, P, D] -> [B, D]."""

    mlp_dim: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, width = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
        # [B, 1, D]. Plain attention: one query has few weights, [B, N, 1, P].
        x = Attention(self.num_heads, name="MultiHeadDotProductAttention_0")(probe, x)
        y = LayerNorm(name="LayerNorm_0")(x)
        # The residual around the MLP starts at the attention's output, as in big_vision.
        return (x + MlpBlock(self.mlp_dim, name="MlpBlock_0")(y))[:, 0]
