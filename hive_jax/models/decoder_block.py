"""One layer of a decoder, and DecoderConfig: all that decoder families differ in.

The defaults are Gemma's; hive_jax/weights/hf_families.py lists the families.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.attention import (
    KeyValues,
    attend,
    attend_causally,
    causal_mask,
    update_kv_cache,
)
from hive_jax.models.config import DecoderConfig
from hive_jax.models.layers import Einsum, GatedMlp, merge_heads, split_heads
from hive_jax.models.norms import RMSNorm
from hive_jax.models.rotary import rotate


class KeyValueProjection(nn.Module):
    """Keys and values of a layer before norm and rotation, [B, T, E] -> [B, T, K, H].

    Its parameters, whose names start with `kv_`, are some of SelfAttention's, so that a
    fusion can apply it to those of a layer (hive_jax/models/joint_attention.py).
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = self.config
        shape = (2, c.num_kv_heads, c.width, c.head_dim)
        w = Einsum(shape, (2,), (0, 1), name="kv_einsum")()
        key, value = split_heads(x, w[0]), split_heads(x, w[1])
        if c.qkv_bias:
            shape = (2, c.num_kv_heads, c.head_dim)
            bias = self.param("kv_bias", nn.initializers.zeros, shape)
            key, value = _add_bias(key, bias[0]), _add_bias(value, bias[1])
        return key, value


class SelfAttention(nn.Module):
    """Grouped-query causal self-attention, x[B, T, E] -> ([B, T, E], cache).

    The arguments are those of `DecoderBlock`.
    """

    config: DecoderConfig
    flash: bool = True

    def setup(self):
        self.key_values = KeyValueProjection(self.config)
        # Its parameters stand beside the others, as in checkpoints.
        nn.share_scope(self, self.key_values)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        is_sliding: jax.Array,
        position: jax.Array | None = None,
        cache: KeyValues | None = None,
        extend: Callable | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        c = self.config
        rope_base = _rope_base(c, is_sliding)
        if position is None:
            position = jnp.arange(x.shape[1])[None]
        rope_position = _rope_position(c, position, is_sliding)
        q_w = Einsum((c.num_heads, c.width, c.head_dim), (1,), (0,), name="q_einsum")()
        out_w = Einsum(
            (c.num_heads, c.head_dim, c.width), (0, 1), name="attn_vec_einsum"
        )()
        # Queries are [B, T, N, H], keys and values [B, T, K, H].
        query = split_heads(x, q_w)
        key, value = self.key_values(x)
        if c.qkv_bias:
            shape = (c.num_heads, c.head_dim)
            bias = self.param("q_bias", nn.initializers.zeros, shape)
            query = _add_bias(query, bias)
        if c.qk_norm:
            query = decoder_norm(c, "query_norm")(query)
            key = decoder_norm(c, "key_norm")(key)
        # Keys are cached after rotation: the logits depend on the distance alone.
        extension = c.rope_factor, c.rope_original_length
        query = rotate(query, rope_position, rope_base, *extension)
        key = rotate(key, rope_position, rope_base, *extension)
        window = c.window if c.local_layers else 0
        scale = c.query_scale or c.head_dim**-0.5
        softcap = c.attention_softcap
        if cache is None and extend is None:
            out = attend_causally(
                query,
                key,
                value,
                is_sliding=is_sliding,
                window=window,
                scale=scale,
                softcap=softcap,
                use_flash=self.flash,
            )
            return merge_heads(out, out_w), None
        # A cache or a fusion needs an explicit mask, which `flash_attention` lacks.
        key_position = position
        if cache is not None:
            cache = update_kv_cache(cache, key, value, position)
            key, value = cache.key, cache.value
            key_position = jnp.arange(key.shape[1])[None]  # slot s: position s
        mask = causal_mask(position, key_position, jnp.where(is_sliding, window, 0))
        # A fusion that extends the attention computes it in place of `attend`.
        attention = extend or attend
        out = attention(query, key, value, mask, scale=scale, softcap=softcap)
        return merge_heads(out, out_w), cache


class DecoderBlock(nn.Module):
    """One pre-norm decoder layer, x[B, T, E] -> ([B, T, E], cache)."""

    config: DecoderConfig
    flash: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        is_sliding: jax.Array,
        position: jax.Array | None = None,
        cache: KeyValues | None = None,
        extend: Callable | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Runs the layer.

        Args:
          x: hidden states [B, T, E].
          is_sliding: bool scalar; selects the window and the rotary base of sliding or
            global layers, so that one compiled block serves both in a scan.
          position: int32[B, T], by default 0 .. T - 1.
          cache: keys and values of earlier tokens, which x attends to as well.
          extend: called in place of `attend`, to attend to more than the text; see
            `Fusion.before_layer`.

        Returns:
          [B, T, E] and the cache with the keys and values of x; None without a cache.
        """
        c = self.config
        y = decoder_norm(c, "pre_attention_norm")(x)
        attention = SelfAttention(c, self.flash, name="attn")
        y, cache = attention(y, is_sliding, position, cache, extend)
        x = x + (decoder_norm(c, "post_attention_norm")(y) if c.post_norms else y)
        mlp = GatedMlp(c.mlp_dim, c.activation, name="mlp")
        y = mlp(decoder_norm(c, "pre_ffw_norm")(x))
        return x + (decoder_norm(c, "post_ffw_norm")(y) if c.post_norms else y), cache


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [N, H] to heads [B, T, N, H]."""
    return x + bias[None, None].astype(x.dtype)


def rotate_in_layer(
    c: DecoderConfig, x: jax.Array, position: jax.Array, is_sliding: jax.Array
) -> jax.Array:
    """Rotates queries or keys [B, T, N, H] by the frequencies of a layer.

    Args:
      c: architecture.
      x: queries or keys.
      position: see `rotate`.
      is_sliding: bool scalar, whether the layer has a sliding window.
    """
    base = _rope_base(c, is_sliding)
    position = _rope_position(c, position, is_sliding)
    return rotate(x, position, base, c.rope_factor, c.rope_original_length)


def _rope_base(c: DecoderConfig, is_sliding: jax.Array) -> jax.Array:
    # `is_sliding` is traced under scan: select values, not Python branches.
    return jnp.where(is_sliding, c.local_rope_base, c.rope_base)


def _rope_position(
    c: DecoderConfig, position: jax.Array, is_sliding: jax.Array
) -> jax.Array:
    # Dividing the position divides all frequencies.
    divisor = 1.0 if c.rope_original_length else c.rope_factor
    return position / jnp.where(is_sliding, 1.0, divisor)


def decoder_norm(c: DecoderConfig, name: str | None = None) -> RMSNorm:
    """Returns a decoder's RMSNorm.

    Args:
      c: architecture.
      name: of the submodule; None for that of the attribute it is assigned to.
    """
    return RMSNorm(c.norm_offset, c.norm_eps, name=name)
