"""The decoder: Gemma 1, 2 and 3 from one configuration.

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

from hive_jax.models import stack
from hive_jax.models.attention import (
    KeyValues,
    attend,
    attend_causally,
    causal_mask,
    rotate,
    update_kv_cache,
)
from hive_jax.models.layers import ONE_DEVICE, Placement, RMSNorm, gelu, matmul


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """A decoder. Layers come in groups of `local_layers` layers with a sliding
    window and one global layer; local_layers 0 makes all of them global.

    Attributes:
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
    scan: bool = False
    remat: str = "none"
    flash: bool = True

    def is_sliding(self) -> np.ndarray:
        """bool[depth]: which layers have a sliding window."""
        number = np.arange(1, self.depth + 1)
        return (number % (self.local_layers + 1) != 0) & (self.local_layers > 0)


_GEMMA3 = {
    "vocab_size": 262_144,
    "head_dim": 256,
    "post_norms": True,
    "qk_norm": True,
    "local_layers": 5,
    "window": 512,
    "rope_base": 1_000_000.0,
}

PRESETS = {
    "tiny": GemmaConfig(qk_norm=True, post_norms=True),
    "gemma_2b": GemmaConfig(256_000, 2048, 18, 16_384, 8, 1, 256),
    "gemma2_2b": GemmaConfig(
        256_000,
        2304,
        26,
        9216,
        8,
        4,
        256,
        attention_softcap=50.0,
        final_softcap=30.0,
        post_norms=True,
        local_layers=1,
    ),
    "gemma3_270m": GemmaConfig(
        width=640, depth=18, mlp_dim=2048, num_heads=4, num_kv_heads=1, **_GEMMA3
    ),
    "gemma3_1b": GemmaConfig(
        width=1152, depth=26, mlp_dim=6912, num_heads=4, num_kv_heads=1, **_GEMMA3
    ),
}


def gemma_config(preset: str) -> GemmaConfig:
    """The configuration of a named size, e.g. gemma_config("gemma3_1b")."""
    if preset not in PRESETS:
        raise ValueError(f"decoder is {preset!r}; expected one of {list(PRESETS)}")
    return PRESETS[preset]


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


class SelfAttention(nn.Module):
    """Grouped-query causal self-attention, x[B, T, E] -> ([B, T, E], cache); see
    `DecoderBlock` for the arguments."""

    config: GemmaConfig

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
            query = RMSNorm(name="query_norm")(query)
            key = RMSNorm(name="key_norm")(key)
        query = rotate(query, rope_position, base)
        key = rotate(key, rope_position, base)
        window = c.window if c.local_layers else 0
        how = {
            "scale": c.query_scale or c.head_dim**-0.5,
            "softcap": c.attention_softcap,
        }
        if cache is None and extend is None:
            how |= {"is_sliding": is_sliding, "window": window, "use_flash": c.flash}
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
    """GeGLU: (gelu(x W_gate) * x W_up) W_down."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=-2, batch_axis=(0,)
        )
        shape = (2, width, self.mlp_dim)
        gating = stack.parameters(self, "gating_einsum", lambda rng: init(rng, shape))
        down = self.param(
            "linear", nn.initializers.lecun_normal(), (self.mlp_dim, width)
        )
        hidden = gelu(matmul(x, gating[0])) * matmul(x, gating[1])
        return matmul(hidden, down)


class DecoderBlock(nn.Module):
    """One decoder layer, x[B, T, E] -> ([B, T, E], cache)."""

    config: GemmaConfig

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
        y = RMSNorm(name="pre_attention_norm")(x)
        attention = SelfAttention(c, name="attn")
        y, cache = attention(y, is_sliding, position, cache, extend)
        x = x + (RMSNorm(name="post_attention_norm")(y) if c.post_norms else y)
        y = RMSNorm(name="pre_ffw_norm")(x)
        y = GatedMlp(c.mlp_dim, name="mlp")(y)
        return x + (RMSNorm(name="post_ffw_norm")(y) if c.post_norms else y), cache


class Embedder(nn.Module):
    """The token embedding table, tied to the output head."""

    config: GemmaConfig

    def setup(self):
        self.input_embedding = self.param(
            "input_embedding",
            nn.initializers.normal(self.config.width**-0.5),
            (self.config.vocab_size, self.config.width),
        )


class Gemma(nn.Module):
    """The decoder. Called on tokens int32[B, T] it returns logits float32[B, T, V];
    `embed`, `segments` and `logits` are the same in steps, for fusion.

    `dtype` is the dtype of the computation; norms' statistics, attention weights and
    logits are float32 in any case.
    """

    config: GemmaConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE

    def setup(self):
        c = self.config
        self.embedder = Embedder(c)
        example = (jnp.zeros((1, 1, c.width)), jnp.zeros((), bool))
        block = DecoderBlock(c, parent=None)
        init = stack.stacked_init(block, c.depth, *example)
        self.layers = stack.parameters(self, "layers", init)
        self.final_norm = RMSNorm()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        (run_layers,) = self.segments((self.config.depth,))
        x, _ = run_layers(self.embed(tokens))
        return self.logits(self.final_norm(x))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> [B, T, E], scaled by sqrt(E)."""
        table = {"input_embedding": self.embedder.input_embedding}
        table = self.placement.gather_params(table)["input_embedding"]
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
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
        c, placement = self.config, self.placement
        block = DecoderBlock(c, parent=None)

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
                layers = piece, is_sliding
                return stack.run(one, layers, x, scan=c.scan, remat=c.remat), ()

            return run

        is_sliding = stack.cut(jnp.asarray(c.is_sliding()), ends)
        return [*map(segment, stack.cut(self.layers, ends), is_sliding)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, T, E] after `final_norm` -> float32[B, T, V]."""
        table = self.embedder.input_embedding
        return unembed(hidden, table, self.config.final_softcap)


def unembed(hidden: jax.Array, table_VE: jax.Array, softcap: float) -> jax.Array:
    """hidden[..., E] times the tied table -> float32[..., V], soft-capped."""
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
