"""The modules of a connection: projector and gated cross-attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.attention import KeyValues, attention_with_weights
from hive_jax.models.config import DecoderConfig
from hive_jax.models.layers import (
    Dense,
    Einsum,
    expand_to_rank,
    gelu,
    merge_heads,
    split_heads,
)
from hive_jax.models.norms import LayerNorm, RMSNorm


class Projector(nn.Module):
    """Features of one depth to the decoder's width, [B, P, D] -> [B, P, E].

    Attributes:
      width: decoder width E.
      kind: one of fusion_kinds.PROJECTORS. "ln_mlp": LayerNorm, Dense, GELU, Dense; "mlp": without
        the norm, the layers of LLaVA-1.5's projector, which transformers names linear_1
        and linear_2; "linear": one Dense.
      exact_gelu: GELU without the tanh approximation.
    """

    width: int
    kind: str
    exact_gelu: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        # Features are taken before the encoder's final norm, so that each depth has a
        # scale of its own; the LayerNorm removes it.
        x = LayerNorm(name="norm")(features) if self.kind == "ln_mlp" else features
        x = Dense(self.width, name="linear_1")(x)
        if self.kind == "linear":
            return x
        # E is also the hidden width, as in LLaVA's "mlp2x_gelu".
        x = nn.gelu(x, approximate=False) if self.exact_gelu else gelu(x)
        return Dense(self.width, name="linear_2")(x)


class CrossAttention(nn.Module):
    """Cross-attention from text to one depth's projected features, times tanh(gate).

    The head layout of the decoder, QK-norm and no MLP. Keys and
    values are computed by a separate method, because decoding computes them once per
    image and reuses them at every step. Parameters carry the names of the decoder's
    self-attention.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        heads, kv_heads = c.num_heads, c.num_kv_heads
        # The RMSNorms are Gemma's for every decoder family: these blocks are trained
        # from scratch and belong to no checkpoint.
        self.norm = RMSNorm()
        self.q_einsum = Einsum((heads, c.width, c.head_dim), (1,), (0,))
        self.kv_einsum = Einsum((2, kv_heads, c.width, c.head_dim), (2,), (0, 1))
        self.attn_vec_einsum = Einsum((heads, c.head_dim, c.width), (0, 1))
        # QK-norm bounds the logits whatever the scale of the image features.
        self.query_norm, self.key_norm = RMSNorm(), RMSNorm()
        # tanh(0) = 0: a pre-trained decoder computes at first what it did without images.
        self.gate = self.param("gate", nn.initializers.zeros, (1,))

    def key_values(self, projected: jax.Array) -> KeyValues:
        """Computes keys and values [B, P, K, H] from projected features [B, P, E].

        They have no rotary embedding: patches have no position in the text, and the
        features contain the encoder's position embedding.
        """
        # [2, K, E, H]: the keys' weights, then the values'.
        w = self.kv_einsum()
        key = self.key_norm(split_heads(projected, w[0]))
        return KeyValues(key, split_heads(projected, w[1]))

    def attend(
        self, x: jax.Array, image_kv: KeyValues, image_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the gated cross-attention, which the caller adds to x.

        Args:
          x: hidden states [B, T, E].
          image_kv: result of `key_values`, [B, P, K, H] each.
          image_mask: bool[B, T]; where False the output is exactly zero.

        Returns:
          The output [B, T, E] and the attention weights float32[B, N, T, P].
        """
        # [B, T, N, H]
        query = self.query_norm(split_heads(self.norm(x), self.q_einsum()))
        out, weights = attention_with_weights(
            query,
            image_kv.key,
            image_kv.value,
            image_mask[:, :, None],  # a token attends to all patches or to none
            scale=self.config.head_dim**-0.5,
        )
        # The tanh is float32, as the parameter is; the product has the dtype of x.
        gate = expand_to_rank(jnp.tanh(self.gate), x)
        return gate * merge_heads(out, self.attn_vec_einsum()), weights

    def __call__(
        self, x: jax.Array, projected: jax.Array, image_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # Used by `init` alone, to create the parameters of both methods.
        return self.attend(x, self.key_values(projected), image_mask)
