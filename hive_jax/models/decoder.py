"""The decoder: all families from one configuration.

By default it is a Gemma; hive_jax/weights/hf_decoder.py lists the families.

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
from flax.traverse_util import flatten_dict

from hive_jax.models import stack
from hive_jax.models.attention import (
    KeyValues,
    attend,
    attend_causally,
    causal_mask,
    rotate,
    update_kv_cache,
)
from hive_jax.models.layers import (
    ONE_DEVICE,
    Einsum,
    Placement,
    RMSNorm,
    gelu,
    matmul,
    merge_heads,
    split_heads,
)
from hive_jax.models.stack import Execution

ACTIVATIONS = {"gelu": gelu, "silu": nn.silu}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder. Layers come in groups of `local_layers` layers with a sliding
    window and one global layer; local_layers 0 makes all of them global.

    Attributes:
      activation: of the gated MLP, a key of ACTIVATIONS.
      norm_offset: RMSNorms multiply by norm_offset + scale (Gemma: 1).
      norm_eps: epsilon of the RMSNorms.
      embed_scale: multiply embeddings by sqrt(width).
      query_scale: factor on the logits; 0 means head_dim ** -0.5.
      attention_softcap, final_softcap: 0 means none.
      post_norms: a norm after attention and MLP too (Gemma 2 and 3).
      qk_norm: RMSNorm on the heads of queries and keys (Gemma 3).
      rope_base, local_rope_base: rotary bases of global and local layers.
      rope_factor: positions are divided by it in global layers (Gemma 3 from 4B on).
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
        """bool[depth]: which layers have a sliding window."""
        number = np.arange(1, self.depth + 1)
        return (number % (self.local_layers + 1) != 0) & (self.local_layers > 0)


class SelfAttention(nn.Module):
    """Grouped-query causal self-attention, x[B, T, E] -> ([B, T, E], cache); see
    `DecoderBlock` for the arguments."""

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
        query = split_heads(x, q_w)
        key, value = split_heads(x, kv_w[0]), split_heads(x, kv_w[1])
        if c.qk_norm:
            query = _norm(c, "query_norm")(query)
            key = _norm(c, "key_norm")(key)
        query = rotate(query, rope_position, base)
        key = rotate(key, rope_position, base)
        window = c.window if c.local_layers else 0
        how = {
            "scale": c.query_scale or c.head_dim**-0.5,
            "softcap": c.attention_softcap,
        }
        if cache is None and extend is None:
            how |= {"is_sliding": is_sliding, "window": window, "use_flash": self.flash}
            out = attend_causally(query, key, value, **how)
            return merge_heads(out, out_w), None
        key_position = position
        if cache is not None:
            cache = update_kv_cache(cache, key, value, position)
            key, value = cache.key, cache.value
            key_position = jnp.arange(key.shape[1])[None]
        mask = causal_mask(position, key_position, jnp.where(is_sliding, window, 0))
        if extend is not None:
            query, key, value, mask = extend(query, key, value, mask)
        out = attend(query, key, value, mask, **how)
        return merge_heads(out, out_w), cache


class GatedMlp(nn.Module):
    """Gated MLP: (activation(x W_gate) * x W_up) W_down."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=-2, batch_axis=(0,)
        )
        shape = (2, c.width, c.mlp_dim)
        gating = stack.parameters(self, "gating_einsum", lambda rng: init(rng, shape))
        down = self.param(
            "linear", nn.initializers.lecun_normal(), (c.mlp_dim, c.width)
        )
        activation = ACTIVATIONS[c.activation]
        hidden = activation(matmul(x, gating[0])) * matmul(x, gating[1])
        return matmul(hidden, down)


class DecoderBlock(nn.Module):
    """One decoder layer, x[B, T, E] -> ([B, T, E], cache)."""

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
        """Args:
          x: [B, T, E].
          is_sliding: bool scalar, picks between windows and rotary bases of sliding and
            global layers, so that one compiled block serves both in a scan.
          position: int32[B, T], by default 0 .. T - 1.
          cache: keys and values of earlier tokens, which x attends to as well.
          extend: changes (query, key, value, mask) before the softmax, to attend to
            more than the text; see `Fusion.before_layer`.

        Returns:
          [B, T, E], and the cache with the keys and values of x.
        """
        c = self.config
        y = _norm(c, "pre_attention_norm")(x)
        attention = SelfAttention(c, self.flash, name="attn")
        y, cache = attention(y, is_sliding, position, cache, extend)
        x = x + (_norm(c, "post_attention_norm")(y) if c.post_norms else y)
        y = GatedMlp(c, name="mlp")(_norm(c, "pre_ffw_norm")(x))
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
    """The decoder. Called on tokens int32[B, T] it returns logits float32[B, T, V];
    `embed`, `segments` and `logits` are the same in steps, for fusion.

    `dtype` is the dtype of the computation; norms' statistics, attention weights and
    logits are float32 in any case.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: Execution = Execution()

    def setup(self):
        c = self.config
        self.embedder = Embedder(c)
        example = (jnp.zeros((1, 1, c.width)), jnp.zeros((), bool))
        block = DecoderBlock(c, parent=None)
        init = stack.stacked_init(block, c.depth, *example)
        self.layers = stack.parameters(self, "layers", init)
        self.final_norm = _norm(c)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        (run_layers,) = self.segments((self.config.depth,))
        x, _ = run_layers(self.embed(tokens))
        return self.logits(self.final_norm(x))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> [B, T, E]; see `DecoderConfig.embed_scale`."""
        table = {"input_embedding": self.embedder.input_embedding}
        table = self.placement.gather_params(table)["input_embedding"]
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        if not self.config.embed_scale:
            return x
        return x * jnp.asarray(self.config.width**0.5, self.dtype)

    def segments(self, ends: Sequence[int]) -> list[Callable]:
        """The layers, cut after each layer in `ends`.

        Args:
          ends: layer numbers counted from 1, increasing, the last one the depth.

        Returns:
          functions (x[B, T, E], position=None, caches=(), extend=None) -> (x, caches)
          that run one segment: with a KV cache for each of its layers, or without. The
          arguments are those of `DecoderBlock`.
        """
        c, placement, execution = self.config, self.placement, self.execution
        block = DecoderBlock(c, execution.flash, parent=None)

        def apply(params, is_sliding, x, *arguments):
            variables = {"params": placement.gather_params(params)}
            return block.apply(variables, x, is_sliding, *arguments)

        def segment(piece, is_sliding):
            def run(x, position=None, caches=(), extend=None):
                if caches:
                    layers, updated = stack.unstack(piece), []
                    for *layer, cache in zip(layers, is_sliding, caches, strict=True):
                        x, cache = apply(*layer, x, position, cache, extend)
                        updated.append(cache)
                    return x, tuple(updated)

                def one(layer, x):
                    x, _ = apply(*layer, x, position, None, extend)
                    return placement.shard_activations(x)

                x = placement.shard_activations(x)
                scan, remat = execution.scan, execution.remat
                x = stack.run(one, (piece, is_sliding), x, scan=scan, remat=remat)
                return x, ()

            return run

        is_sliding = stack.cut(jnp.asarray(c.is_sliding()), ends)
        return [*map(segment, stack.cut(self.layers, ends), is_sliding)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, T, E] after `final_norm` -> float32[B, T, V]."""
        table = self.embedder.input_embedding
        return unembed(hidden, table, self.config.final_softcap)


def head_name(config: DecoderConfig) -> str:
    """Name of the output head's table: the embeddings, which are tied to it."""
    return "embedder/input_embedding"


def head(config: DecoderConfig, params: dict) -> tuple[jax.Array, float]:
    """The output head of a decoder's parameters: what `unembed` takes.

    Args:
      config: of the decoder.
      params: its parameters.

    Returns:
      table [V, E], and the soft-cap of the logits, 0 for none.
    """
    table = flatten_dict(params, sep="/")[head_name(config)]
    return table, config.final_softcap


def unembed(hidden: jax.Array, table_VE: jax.Array, softcap: float) -> jax.Array:
    """Logits float32[..., V] of hidden[..., E], soft-capped.

    Args:
      hidden: after the final norm.
      table_VE: of the output head, cast to the dtype of `hidden`.
      softcap: squashes logits to (-softcap, softcap); 0 for none.
    """
    logits = jnp.einsum(
        "...E,VE->...V",
        hidden,
        table_VE.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return jnp.tanh(logits / softcap) * softcap if softcap else logits


def unstack_layers(params: dict) -> dict:
    """Parameters of a decoder for decoding: each layer in arrays of its own.

    On a CPU, decoding from stacked layers takes about twice as long, for each step then
    copies all weights out of the stack.
    """
    layers = stack.unstack(params["layers"])
    layers = [
        layer | {"mlp": layer["mlp"] | {"gating_einsum": stack.unstacked(gating)}}
        for layer in layers
        for gating in [layer["mlp"]["gating_einsum"]]
    ]
    return params | {"layers": stack.UnstackedLayers(tuple(layers))}
