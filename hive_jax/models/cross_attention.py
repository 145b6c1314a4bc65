"""Cross-attention from text to projected image features, and the projector.

A connection of "hive" or "cascaded" has one of each; see hive_jax/models/fusion.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.attention import KeyValues, attention_with_weights
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.layers import (
    Dense,
    Einsum,
    LayerNorm,
    RMSNorm,
    gelu,
    last_axis,
    merge_heads,
    split_heads,
)


class Projector(nn.Module):
    """Features of one depth to the decoder's width, [B, P, D] -> [B, P, E].

    LayerNorm, Dense, GELU, Dense; without the norm it is LLaVA's projector.
    """

    width: int
    norm: bool

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = LayerNorm(name="norm")(features) if self.norm else features
        x = gelu(Dense(self.width, name="linear_1")(x))
        return Dense(self.width, name="linear_2")(x)


class CrossAttention(nn.Module):
    """Cross-attention from text to one depth's projected features, times tanh(gate).

    The decoder's own head layout, QK-norm, no MLP. The gate starts at 0, so that a
    loaded decoder starts out unchanged. `key_values` is separate because it is computed
    once an image, and cached while decoding.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        heads, kv_heads = c.num_heads, c.num_kv_heads
        self.norm = RMSNorm()
        self.q_einsum = Einsum((heads, c.width, c.head_dim), (1,), (0,))
        self.kv_einsum = Einsum((2, kv_heads, c.width, c.head_dim), (2,), (0, 1))
        self.attn_vec_einsum = Einsum((heads, c.head_dim, c.width), (0, 1))
        self.query_norm, self.key_norm = RMSNorm(), RMSNorm()
        self.gate = self.param("gate", nn.initializers.zeros, (1,))

    def key_values(self, projected: jax.Array) -> KeyValues:
        """[B, P, E] -> keys and values [B, P, K, H]."""
        w = self.kv_einsum()
        key = self.key_norm(split_heads(projected, w[0]))
        return KeyValues(key, split_heads(projected, w[1]))

    def attend(self, x: jax.Array, image_kv: KeyValues, image_mask: jax.Array):
        """Gated cross-attention, to be added to x, and its weights.

        Args:
          x: hidden states [B, T, E].
          image_kv: of `key_values`.
          image_mask: bool[B, T]; where False the result is exactly zero.

        Returns:
          [B, T, E], and attention weights float32[B, N, T, P].
        """
        query = self.query_norm(split_heads(self.norm(x), self.q_einsum()))
        out, weights = attention_with_weights(
            query,
            image_kv.key,
            image_kv.value,
            image_mask[:, :, None],
            scale=self.config.head_dim**-0.5,
        )
        gate = last_axis(jnp.tanh(self.gate), x)
        return gate * merge_heads(out, self.attn_vec_einsum()), weights

    def __call__(self, x: jax.Array, projected: jax.Array, image_mask: jax.Array):
        return self.attend(x, self.key_values(projected), image_mask)
