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
    attend,
    attend_causally,
    causal_mask,
    rotate,
)
from hive_jax.models.cache import KeysValues, extended
from hive_jax.models.layers import RMSNorm, gelu, matmul
from hive_jax.models.placement import ONE_DEVICE, Placement
from hive_jax.models.stack import Execution


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

    def is_local(self) -> np.ndarray:
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
    """Grouped-head causal self-attention, x[B, T, E] -> ([B, T, E], cache).

    With a cache, x stands at `position` int32[B, T] and looks at what the cache holds
    as well; the cache comes back with the keys and values of x.
    """

    config: GemmaConfig
    flash: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        local: jax.Array,
        position: jax.Array | None = None,
        cache: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        c = self.config
        base = jnp.where(local, c.local_rope_base, c.rope_base)
        place = jnp.arange(x.shape[1])[None] if position is None else position
        turned = place / jnp.where(local, 1.0, c.rope_factor)
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
        query, key = rotate(query, turned, base), rotate(key, turned, base)
        window = c.window if c.local_layers else 0
        how = {
            "scale": c.query_scale or c.head_dim**-0.5,
            "softcap": c.attention_softcap,
        }
        if cache is None:
            how |= {"local": local, "window": window, "use_flash": self.flash}
            out = attend_causally(query, key, value, **how)
        else:
            cache = extended(cache, key, value, place)
            kept = jnp.arange(cache.key.shape[1])[None]
            mask = causal_mask(place, kept, jnp.where(local, window, 0))
            out = attend(query, cache.key, cache.value, mask, **how)
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
    """One decoder layer, x[B, T, E] -> ([B, T, E], cache); see SelfAttention.

    `local` (bool scalar) picks between the windows and rotary bases of local and
    global layers, so that one compiled block serves both in a scan.
    """

    config: GemmaConfig
    flash: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        local: jax.Array,
        position: jax.Array | None = None,
        cache: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        c = self.config
        y = RMSNorm(name="pre_attention_norm")(x)
        y, cache = SelfAttention(c, self.flash, name="attn")(y, local, position, cache)
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
    execution: Execution = Execution()

    def setup(self):
        c = self.config
        self.embedder = Embedder(c)
        example = (jnp.zeros((1, 1, c.width)), jnp.zeros((), bool))
        block = DecoderBlock(c, parent=None)
        init = stack.stacked_init(block, c.depth, *example)
        self.layers = stack.parameters(self, "layers", init)
        self.final_norm = RMSNorm()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        (layers,) = self.segments((self.config.depth,))
        return self.logits(self.final_norm(layers(self.embed(tokens))))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> [B, T, E], scaled by sqrt(E)."""
        table = {"input_embedding": self.embedder.input_embedding}
        table = self.placement.weights(table)["input_embedding"]
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        return x * jnp.asarray(self.config.width**0.5, self.dtype)

    def segments(self, ends: Sequence[int]) -> list[Callable[[jax.Array], jax.Array]]:
        """The layers cut after each layer in `ends`, as functions [B, T, E] -> same.

        `ends` are layer numbers counted from 1, increasing, the last one the depth.
        """
        c, place, execution = self.config, self.placement, self.execution
        block = DecoderBlock(c, execution.flash, parent=None)

        def apply(layer, x):
            params, local = layer
            x, _ = block.apply({"params": place.weights(params)}, x, local)
            return place.rows(x)

        def segment(piece):
            def run(x):
                x = place.rows(x)
                scan, remat = execution.scan, execution.remat
                return stack.run(apply, piece, x, scan=scan, remat=remat)

            return run

        pieces = stack.cut((self.layers, jnp.asarray(c.is_local())), ends)
        return [segment(piece) for piece in pieces]

    def cached_layers(self) -> list[Callable]:
        """Each layer as a function (x[B, T, E], position int32[B, T], cache) ->
        (x, cache), to read a prompt and to write after it."""
        c, place = self.config, self.placement
        block = DecoderBlock(c, parent=None)

        def layer(params, local):
            variables = {"params": place.weights(params)}
            return lambda x, *where: block.apply(variables, x, local, *where)

        return [*map(layer, stack.unstack(self.layers), jnp.asarray(c.is_local()))]

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
