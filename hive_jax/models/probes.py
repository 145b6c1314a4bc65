"""Classifiers on the features of a frozen encoder (paper, table 4).

The encoder does not train: these modules take its outputs, not its images.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.layers import Dense
from hive_jax.models.transformer import Attention


class LinearProbe(nn.Module):
    """Linear probe: mean of the tokens [B, D] -> logits [B, num_classes]."""

    num_classes: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        return Dense(self.num_classes, name="classifier")(pooled)


class AttentiveProbe(nn.Module):
    """Attentive probe: tokens [B, P, D] -> logits [B, num_classes].

    A learned query pools the tokens by attention, as SigLIP's MAP head does, but without
    the head's MLP.
    """

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        batch, _, width = tokens.shape
        query = self.param("query", nn.initializers.xavier_uniform(), (1, 1, width))
        query = jnp.broadcast_to(query, (batch, 1, width)).astype(tokens.dtype)
        pooled = Attention(self.num_heads, name="attention")(query, tokens)[:, 0]
        return Dense(self.num_classes, name="classifier")(pooled)
