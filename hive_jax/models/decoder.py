"""The decoder (LLM): one module for all families, which differ in their configuration.

The defaults are Gemma's; hive_jax/weights/hf_decoder.py lists the families.

Parameters carry the names of big_vision's models/ppp/gemma.py, with the layers
stacked on a leading axis: `embedder/input_embedding` [V, E],
`layers/attn/{q_einsum,kv_einsum,attn_vec_einsum}/w`, `layers/mlp/...`, `final_norm`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.models import layer_stack
from hive_jax.models.attention import (
    KeyValues,
    attend,
    attend_causally,
    causal_mask,
    rotate,
    update_kv_cache,
)
from hive_jax.models.layer_stack import Execution
from hive_jax.models.layers import (
    ONE_DEVICE,
    Einsum,
    GatedMlp,
    Placement,
    merge_heads,
    split_heads,
    unembed,
)
from hive_jax.models.norms import RMSNorm


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder; the default sizes are a toy's.

    Attributes:
      vocab_size, width, depth, mlp_dim: V, E, L, F.
      num_heads, num_kv_heads, head_dim: N, K, H; grouped-query attention if K < N.
      query_scale: factor on the attention logits; 0 for head_dim ** -0.5.
      attention_softcap, final_softcap: soft-caps of attention and output logits
        (Gemma 2); 0 for none.
      post_norms: RMSNorms after attention and MLP too (Gemma 2 and 3).
      qk_norm: RMSNorms on the heads of queries and keys (Gemma 3).
      local_layers: sliding-window layers before each global layer; 0 makes all layers
        global.
      window: tokens that a sliding-window layer attends to.
      rope_base, local_rope_base: rotary bases of global and sliding-window layers.
      rope_factor: divides positions in global layers (Gemma 3 from 4B on).
      activation: of the gated MLP, a key of ACTIVATIONS.
      norm_offset: RMSNorms multiply by norm_offset + scale (Gemma: 1).
      norm_eps: epsilon of the RMSNorms.
      embed_scale: multiply embeddings by sqrt(width).
    """

    vocab_size: int = 512
    width: int = 64
    depth: int = 4
    mlp_dim: int = 256
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 16
    query_scale: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    local_layers: int = 0
    window: int = 4096
    rope_base: float = 10_000.0
    local_rope_base: float = 10_000.0
    rope_factor: float = 1.0
    activation: str = "gelu"
    norm_offset: float = 1.0
    norm_eps: float = 1e-6
    embed_scale: bool = True

    def is_sliding(self) -> np.ndarray:
        """Returns bool[depth]: which layers have a sliding window."""
        # Counted from 1: every (local_layers + 1)-th layer is global.
        number = np.arange(1, self.depth + 1)
        return (number % (self.local_layers + 1) != 0) & (self.local_layers > 0)


class SelfAttention(nn.Module):
    """Grouped-query causal self-attention, x[B, T, E] -> ([B, T, E], cache).

    The arguments are those of `DecoderBlock`.
    """

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
        c = self.config
        # `is_sliding` is traced under scan: select values, not Python branches.
        base = jnp.where(is_sliding, c.local_rope_base, c.rope_base)
        if position is None:
            position = jnp.arange(x.shape[1])[None]
        rope_position = position / jnp.where(is_sliding, 1.0, c.rope_factor)
        q_w = Einsum((c.num_heads, c.width, c.head_dim), (1,), (0,), name="q_einsum")()
        kv_w = Einsum(
            (2, c.num_kv_heads, c.width, c.head_dim), (2,), (0, 1), name="kv_einsum"
        )()
        out_w = Einsum(
            (c.num_heads, c.head_dim, c.width), (0, 1), name="attn_vec_einsum"
        )()
        # Queries are [B, T, N, H], keys and values [B, T, K, H].
        query = split_heads(x, q_w)
        key, value = split_heads(x, kv_w[0]), split_heads(x, kv_w[1])
        if c.qk_norm:
            query = _norm(c, "query_norm")(query)
            key = _norm(c, "key_norm")(key)
        # Keys are cached after rotation: the logits depend on the distance alone.
        query = rotate(query, rope_position, base)
        key = rotate(key, rope_position, base)
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
        if extend is not None:
            query, key, value, mask = extend(query, key, value, mask)
        out = attend(query, key, value, mask, scale=scale, softcap=softcap)
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
          extend: applied to (query, key, value, mask) before the softmax, to attend to
            more than the text; see `Fusion.before_layer`.

        Returns:
          [B, T, E] and the cache with the keys and values of x; None without a cache.
        """
        c = self.config
        y = _norm(c, "pre_attention_norm")(x)
        attention = SelfAttention(c, self.flash, name="attn")
        y, cache = attention(y, is_sliding, position, cache, extend)
        x = x + (_norm(c, "post_attention_norm")(y) if c.post_norms else y)
        mlp = GatedMlp(c.mlp_dim, c.activation, name="mlp")
        y = mlp(_norm(c, "pre_ffw_norm")(x))
        return x + (_norm(c, "post_ffw_norm")(y) if c.post_norms else y), cache


def _norm(c: DecoderConfig, name: str | None = None) -> RMSNorm:
    return RMSNorm(c.norm_offset, c.norm_eps, name=name)


class Embedder(nn.Module):
    """The token embedding table, tied to the output head."""

    config: DecoderConfig

    def setup(self):
        self.input_embedding = self.param(
            "input_embedding",
            nn.initializers.normal(self.config.width**-0.5),
            (self.config.vocab_size, self.config.width),
        )


class Decoder(nn.Module):
    """A decoder: tokens int32[B, T] -> logits float32[B, T, V].

    `Hive` calls `embed`, `segments`, `final_norm` and `logits` one by one, and inserts
    the image between segments.

    Attributes:
      config: architecture.
      dtype: of the computation; statistics of norms, attention weights and logits are
        float32 in any case.
      placement: sharding constraints.
      execution: scan, remat and flash attention.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: Execution = Execution()

    def setup(self):
        c = self.config
        self.embedder = Embedder(c)
        # A block's parameters do not depend on batch or length: one token is enough.
        example = (jnp.zeros((1, 1, c.width)), jnp.zeros((), bool))
        block = DecoderBlock(c, parent=None)
        init = layer_stack.stacked_init(block, c.depth, *example)
        self.layers = layer_stack.stacked_params(self, "layers", init)
        self.final_norm = _norm(c)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        (run_layers,) = self.segments((self.config.depth,))
        x, _ = run_layers(self.embed(tokens))
        return self.logits(self.final_norm(x))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeds tokens int32[B, T] -> [B, T, E]."""
        # As a tree: how `gather_params` gathers a leaf depends on its name.
        table = {"input_embedding": self.embedder.input_embedding}
        table = self.placement.gather_params(table)["input_embedding"]
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        if not self.config.embed_scale:
            return x
        # Rounded to the compute dtype, as in big_vision and transformers: in
        # bfloat16, sqrt(1152) = 33.94 is 34.
        return x * jnp.asarray(self.config.width**0.5, self.dtype)

    def segments(self, ends: Sequence[int]) -> list[Callable]:
        """Splits the layers into segments between which the caller may change x.

        Args:
          ends: last layer of each segment, counted from 1, increasing up to the depth.

        Returns:
          A function for each segment, (x[B, T, E], position=None, caches=(),
          extend=None) -> (x, caches): with a KV cache for each of its layers, or
          without. The arguments are those of `DecoderBlock`.
        """
        c, placement, execution = self.config, self.placement, self.execution
        block = DecoderBlock(c, execution.flash, parent=None)

        def apply(params, is_sliding, x, *arguments):
            variables = {"params": placement.gather_params(params)}
            return block.apply(variables, x, is_sliding, *arguments)

        def segment(params, is_sliding):
            def run(x, position=None, caches=(), extend=None):
                if caches:
                    # Unrolled: each layer's cache is an array of its own.
                    layers, updated = layer_stack.unstack(params), []
                    for *layer, cache in zip(layers, is_sliding, caches, strict=True):
                        x, cache = apply(*layer, x, position, cache, extend)
                        updated.append(cache)
                    return x, tuple(updated)

                def apply_layer(layer, x):
                    x, _ = apply(*layer, x, position, None, extend)
                    return placement.shard_activations(x)

                x = placement.shard_activations(x)
                scan, remat = execution.scan, execution.remat
                x = layer_stack.run_layers(
                    apply_layer, (params, is_sliding), x, scan=scan, remat=remat
                )
                return x, ()

            return run

        is_sliding = layer_stack.split_layers(jnp.asarray(c.is_sliding()), ends)
        return [*map(segment, layer_stack.split_layers(self.layers, ends), is_sliding)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits float32[B, T, V] from [B, T, E] after `final_norm`."""
        table = self.embedder.input_embedding
        return unembed(hidden, table, self.config.final_softcap)


def head(config: DecoderConfig, params: dict) -> tuple[jax.Array, float]:
    """Returns the output head, as `unembed` takes it; it is tied to the embeddings.

    For losses, which apply it to supervised tokens alone.

    Args:
      config: architecture.
      params: parameters of the decoder.

    Returns:
      The table [V, E] and the soft-cap of the logits, 0 for none.
    """
    return params["embedder"]["input_embedding"], config.final_softcap


def unstack_layers(params: dict) -> dict:
    """Converts parameters for decoding: each layer in arrays of its own.

    With stacked layers, every decode step would copy all weights out of the stack, which
    makes decoding on a CPU about half as fast.
    """

    def unstack_gates(layer: dict) -> dict:
        mlp = layer["mlp"]
        gates = layer_stack.to_unstacked_layers(mlp["gating_einsum"])
        return layer | {"mlp": mlp | {"gating_einsum": gates}}

    layers = map(unstack_gates, layer_stack.unstack(params["layers"]))
    return params | {"layers": layer_stack.UnstackedLayers(tuple(layers))}
