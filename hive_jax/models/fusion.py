"""How the decoder reads the encoder: the map of connections, projectors, cross-attention.

A connection is a pair (encoder depth, decoder layer), both counted from 1.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models import stack
from hive_jax.models.attention import attend_and_tell
from hive_jax.models.cache import KeysValues
from hive_jax.models.gemma import Einsum, GemmaConfig, merge_heads, split_heads
from hive_jax.models.layers import Dense, LayerNorm, RMSNorm, gelu, last_axis
from hive_jax.models.placement import ONE_DEVICE, Placement

FUSIONS = ("hive", "cascaded", "self_attention", "none")

Connections = tuple[tuple[int, int], ...]


def default_connections(
    encoder_depth: int, decoder_depth: int, count: int = 0
) -> Connections:
    """`count` of the encoder's depths, evenly spaced, the last one included, to evenly
    spaced decoder layers; 0 means 25 % of the depths (paper, section 3).

    default_connections(24, 26) ->
        ((4, 4), (8, 9), (12, 13), (16, 17), (20, 22), (24, 26))
    """
    count = count or max(1, min(round(encoder_depth / 4), decoder_depth))

    def spaced(depth):
        return [round((i + 1) * depth / count) for i in range(count)]

    return tuple(zip(spaced(encoder_depth), spaced(decoder_depth), strict=True))


def resolve_connections(
    fusion: str,
    connections: Connections,
    encoder_depth: int,
    decoder_depth: int,
    count: int = 0,
) -> Connections:
    """The connections in use: as given or by default (`count` of them), checked
    against both towers.

    "cascaded" keeps the decoder layers and reads the last encoder block from all
    of them; "self_attention" reads one depth, the deepest, before the first layer;
    "none" has no connection. Raises ValueError for a pair that cannot be.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"model.fusion is {fusion!r}; expected one of {FUSIONS}")
    if fusion == "none":
        return ()
    if not 0 <= count <= min(encoder_depth, decoder_depth):
        raise ValueError(
            f"num_connections is {count}; expected at most the number of encoder "
            f"depths, {encoder_depth}, and of decoder layers, {decoder_depth}"
        )
    pairs = connections or default_connections(encoder_depth, decoder_depth, count)
    pairs = tuple((int(depth), int(layer)) for depth, layer in pairs)
    for depth, layer in pairs:
        if not (1 <= depth <= encoder_depth and 1 <= layer <= decoder_depth):
            raise ValueError(
                f"connection ({depth}, {layer}): expected an encoder depth of 1 to "
                f"{encoder_depth} and a decoder layer of 1 to {decoder_depth}"
            )
    layers = [layer for _, layer in pairs]
    if layers != sorted(set(layers)):
        raise ValueError(f"connected decoder layers {layers} must increase")
    if fusion == "cascaded":
        return tuple((encoder_depth, layer) for layer in layers)
    if fusion == "self_attention":
        return ((max(depth for depth, _ in pairs), 1),)
    return pairs


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
    """What a connected decoder layer reads from its depth, times tanh(gate).

    The decoder's own head layout, QK-norm, no MLP. The gate starts at 0, so that a
    loaded decoder starts out unchanged. `keys_values` is apart from `read`, for it
    is done once an image and is what a decoding cache keeps.
    """

    config: GemmaConfig

    def setup(self):
        c = self.config
        heads, kv_heads = c.num_heads, c.num_kv_heads
        self.norm = RMSNorm()
        self.q_einsum = Einsum((heads, c.width, c.head_dim), (1,), (0,))
        self.kv_einsum = Einsum((2, kv_heads, c.width, c.head_dim), (2,), (0, 1))
        self.attn_vec_einsum = Einsum((heads, c.head_dim, c.width), (0, 1))
        self.query_norm, self.key_norm = RMSNorm(), RMSNorm()
        self.gate = self.param("gate", nn.initializers.zeros, (1,))

    def keys_values(self, projected: jax.Array) -> KeysValues:
        """[B, P, E] -> keys and values [B, P, K, H]."""
        w = self.kv_einsum()
        key = self.key_norm(split_heads(projected, w[0]))
        return KeysValues(key, split_heads(projected, w[1]))

    def read(
        self, x: jax.Array, keys_values: KeysValues, sees: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x[B, T, E] -> what to add to it, zero where `sees` bool[B, T] is False; and
        where it looked, float32[B, N, T, P]."""
        query = self.query_norm(split_heads(self.norm(x), self.q_einsum()))
        key, value = keys_values.key, keys_values.value
        scale = self.config.head_dim**-0.5
        out, shares = attend_and_tell(query, key, value, sees[:, :, None], scale=scale)
        gate = last_axis(jnp.tanh(self.gate), x)
        return gate * merge_heads(out, self.attn_vec_einsum()), shares

    def __call__(self, x: jax.Array, projected: jax.Array, sees: jax.Array):
        return self.read(x, self.keys_values(projected), sees)


class Fusion(nn.Module):
    """Projectors and cross-attention blocks of all connections, each stacked on a
    leading axis M; "self_attention" has one projector and nothing else."""

    fusion: str
    count: int
    encoder_width: int
    config: GemmaConfig
    placement: Placement = ONE_DEVICE

    def setup(self):
        projected = jnp.zeros((1, 1, self.config.width))
        features = jnp.zeros((1, 1, self.encoder_width))
        init = stack.stacked_init(self._projector(), self.count, features)
        self.projector = stack.parameters(self, "projector", init)
        if self.fusion != "self_attention":
            sees = jnp.ones((1, 1), bool)
            block = CrossAttention(self.config, parent=None)
            init = stack.stacked_init(block, self.count, projected, projected, sees)
            self.cross_attention = stack.parameters(self, "cross_attention", init)

    def _projector(self) -> Projector:
        norm = self.fusion != "self_attention"
        return Projector(self.config.width, norm, parent=None)

    def project(self, features: jax.Array) -> list[jax.Array]:
        """features[M, B, P, D] -> M times [B, P, E]."""
        module, place = self._projector(), self.placement
        return [
            place.rows(module.apply({"params": place.weights(params)}, feature))
            for params, feature in zip(
                stack.unstack(self.projector), features, strict=True
            )
        ]

    def keys_values(self, features: jax.Array) -> tuple[KeysValues, ...]:
        """features[M, B, P, D] -> what each connection reads."""
        projected = self.project(features)
        return tuple(
            block(image, method="keys_values")
            for block, image in zip(self._blocks(), projected, strict=True)
        )

    def readers(self, images: tuple[KeysValues, ...], sees: jax.Array) -> list:
        """For each connection the function x[B, T, E] -> (x plus what it reads, where it
        looked float32[B, N, T, P])."""

        def reader(block, image):
            def read(x):
                added, shares = block(x, image, sees, method="read")
                return x + added, shares

            return read

        return [reader(*pair) for pair in zip(self._blocks(), images, strict=True)]

    def _blocks(self) -> list:
        """The methods of each connection's CrossAttention."""
        block = CrossAttention(self.config, parent=None)
        return [
            functools.partial(block.apply, {"params": self.placement.weights(params)})
            for params in stack.unstack(self.cross_attention)
        ]
