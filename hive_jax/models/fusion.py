"""Fusions: how the decoder attends to the encoder. One class each, listed in FUSIONS.

A connection is a pair (encoder depth, decoder layer), both counted from 1. `Hive` asks
its fusion for the image state once, and then before each connected layer; see `Fusion`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models import layer_stack
from hive_jax.models.attention import KeyValues
from hive_jax.models.cross_attention import CrossAttention, Projector
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.layers import ONE_DEVICE, Placement

Connections = tuple[tuple[int, int], ...]


def default_connections(
    encoder_depth: int, decoder_depth: int, count: int = 0
) -> Connections:
    """Evenly spaced encoder depths, the last one included, to evenly spaced layers.

    default_connections(24, 26) ->
        ((4, 4), (8, 9), (12, 13), (16, 17), (20, 22), (24, 26))

    Args:
      encoder_depth, decoder_depth: numbers of layers.
      count: number of connections; 0 for 25 % of the depths (paper, section 3).
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
    """The connections of a model, given or by default, checked against both towers.

    Args:
      fusion: a key of FUSIONS.
      connections: pairs, or () for `default_connections`.
      encoder_depth, decoder_depth: numbers of layers.
      count: number of default connections; 0 for 25 % of the depths.

    Raises:
      ValueError: unknown fusion, or a pair outside of the towers.
    """
    fusion_class = fusion_named(fusion)
    if not fusion_class.uses_image:
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
    return fusion_class.connect(pairs, encoder_depth)


class Fusion(nn.Module):
    """Base of the fusions: a projector per connection, stacked on a leading axis M.

    `Hive` calls `prepare` once, with the features of the connected depths, and
    `before_layer` before each connected layer. `connection` counts from 0.

    Attributes:
      uses_image: whether there is an encoder at all.
      export_kind: the component of an export that holds the whole model, or "".
      has_attention_weights: whether `attention_weights` is implemented.
      extends_attention: whether `before_layer` changes the layer's own attention.
      projector_norm: LayerNorm in the projectors.
    """

    count: int
    encoder_width: int
    config: DecoderConfig
    placement: Placement = ONE_DEVICE

    uses_image = True
    export_kind = ""
    has_attention_weights = False
    extends_attention = False
    projector_norm = True

    @staticmethod
    def connect(pairs: Connections, encoder_depth: int) -> Connections:
        """The connections that this fusion makes of evenly spaced or given pairs."""
        return pairs

    @staticmethod
    def image_tokens_in_text(num_patches: int) -> int:
        """How many image tokens pass through the decoder with the text."""
        return 0

    def setup(self):
        features = jnp.zeros((1, 1, self.encoder_width))
        init = layer_stack.stacked_init(self._projector(), self.count, features)
        self.projector = layer_stack.stacked_params(self, "projector", init)

    def _projector(self) -> Projector:
        return Projector(self.config.width, self.projector_norm, parent=None)

    def project(self, features: jax.Array) -> list[jax.Array]:
        """features[M, B, P, D] -> M arrays [B, P, E], a projector for each depth."""
        module, placement = self._projector(), self.placement
        return [
            placement.shard_activations(
                module.apply({"params": placement.gather_params(params)}, feature)
            )
            for params, feature in zip(
                layer_stack.unstack(self.projector), features, strict=True
            )
        ]

    def prepare(
        self, features: jax.Array, text: jax.Array, image_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, tuple[KeyValues, ...]]:
        """Everything that is computed once an image, before the decoder's first layer.

        Args:
          features: [M, B, P, D] of the connected depths.
          text: embeddings [B, T, E].
          image_mask: bool[B, T], tokens that see the image.

        Returns:
          the sequence [B, S, E] that the decoder runs on, the position int32[B, T] of
          each text token in it, and the keys and values of each connection, which
          `before_layer` gets and decoding keeps.
        """
        raise NotImplementedError

    def before_layer(
        self,
        connection: int,
        x: jax.Array,
        image_kv: tuple[KeyValues, ...],
        image_mask: jax.Array,
    ) -> tuple[jax.Array, Callable | None]:
        """What the image does at a connected layer.

        Args:
          connection: its number.
          x: hidden states [B, T, E] before the layer.
          image_kv: of `prepare`.
          image_mask: bool[B, T].

        Returns:
          x with the image's part added, and None; a fusion that `extends_attention`
          returns a function instead, which the layer's own attention applies to
          (query, key, value, mask) before its softmax, to append the image's keys and
          values there.
        """
        return x, None

    def attention_weights(
        self,
        connection: int,
        x: jax.Array,
        image_kv: tuple[KeyValues, ...],
        image_mask: jax.Array,
    ) -> jax.Array:
        """The weights of text on patches, float32[B, N, T, P]; see `before_layer`."""
        raise NotImplementedError

    @staticmethod
    def count_flops(
        count, encoder, decoder, tokens: int, features: bool, text: bool
    ) -> bool:
        """Adds the matrix products of one connection to a FLOP counter.

        Args:
          count: counter with `product`, `attention`, `project` and `trains`; see
            hive_jax/benchmark/flops.py.
          encoder, decoder: configurations.
          tokens: number of text tokens.
          features: whether the encoder's features have gradients.
          text: whether the hidden states before the connection have gradients.

        Returns:
          whether the hidden states after the connection have gradients.
        """
        raise NotImplementedError


class CrossAttentionFusion(Fusion):
    """HIVE: before each connected layer, cross-attention to its own encoder depth.

    x = x + tanh(gate) * cross_attention(x, image_kv)
    """

    export_kind = "hive"
    has_attention_weights = True

    def setup(self):
        super().setup()
        x = jnp.zeros((1, 1, self.config.width))
        block = CrossAttention(self.config, parent=None)
        example = (x, x, jnp.ones((1, 1), bool))
        init = layer_stack.stacked_init(block, self.count, *example)
        self.cross_attention = layer_stack.stacked_params(self, "cross_attention", init)
        # Unstacked once: each use of it would add a gradient of the whole stack.
        self.blocks = layer_stack.unstack(self.cross_attention)

    def _apply(self, connection: int, method: str, *inputs):
        block = CrossAttention(self.config, parent=None)
        params = self.placement.gather_params(self.blocks[connection])
        return block.apply({"params": params}, *inputs, method=method)

    def prepare(self, features, text, image_mask):
        image_kv = tuple(
            self._apply(connection, "key_values", projected)
            for connection, projected in enumerate(self.project(features))
        )
        return text, text_position(text), image_kv

    def before_layer(self, connection, x, image_kv, image_mask):
        inputs = x, image_kv[connection], image_mask
        return x + self._apply(connection, "attend", *inputs)[0], None

    def attention_weights(self, connection, x, image_kv, image_mask):
        inputs = x, image_kv[connection], image_mask
        return self._apply(connection, "attend", *inputs)[1]

    @staticmethod
    def count_flops(count, encoder, decoder, tokens, features, text):
        patches, width = encoder.num_patches, decoder.width
        heads = decoder.num_heads * decoder.head_dim
        keys = 2 * decoder.num_kv_heads * decoder.head_dim
        block = count.trains("fusion/cross_attention")
        image = count.project(features)
        count.product("image_keys", patches, width, keys, block, image)
        part = "cross_attention"
        count.product(part, tokens, width, heads, block, text)
        count.attention(part, tokens, patches, heads, block or image or text)
        count.product(part, tokens, heads, width, block, True)
        return text or block or image


class CascadedFusion(CrossAttentionFusion):
    """Baseline: the same blocks, all of them on the encoder's last depth."""

    @staticmethod
    def connect(pairs, encoder_depth):
        return tuple((encoder_depth, layer) for _, layer in pairs)


class PrefixFusion(Fusion):
    """Baseline, LLaVA's self-attention: projected tokens of one depth, the deepest,
    precede the text that sees the image and pass through the whole decoder."""

    export_kind = "vlm"
    projector_norm = False

    @staticmethod
    def connect(pairs, encoder_depth):
        return ((max(depth for depth, _ in pairs), 1),)

    @staticmethod
    def image_tokens_in_text(num_patches):
        return num_patches

    def prepare(self, features, text, image_mask):
        (image,) = self.project(features)
        image_position, position = interleave(image_mask, image.shape[1])
        x = jnp.concatenate([image.astype(text.dtype), text], axis=1)
        order = jnp.argsort(jnp.concatenate([image_position, position], axis=1), axis=1)
        return jnp.take_along_axis(x, order[..., None], axis=1), position, ()

    @staticmethod
    def count_flops(count, encoder, decoder, tokens, features, text):
        count.project(features)
        return text or features or count.trains("fusion")


class NoFusion(Fusion):
    """The decoder alone."""

    uses_image = False


FUSIONS: dict[str, type[Fusion]] = {
    "hive": CrossAttentionFusion,
    "cascaded": CascadedFusion,
    "self_attention": PrefixFusion,
    "none": NoFusion,
}


def fusion_named(name: str) -> type[Fusion]:
    """The class of a key of FUSIONS. Raises ValueError for another name."""
    if name not in FUSIONS:
        raise ValueError(f"model.fusion is {name!r}; expected one of {list(FUSIONS)}")
    return FUSIONS[name]


def text_position(tokens: jax.Array) -> jax.Array:
    """int32[B, T]: 0 .. T - 1 in each row of [B, T, ...]."""
    position = jnp.arange(tokens.shape[1])[None]
    return jnp.broadcast_to(position, tokens.shape[:2])


def interleave(image_mask: jax.Array, num_patches: int) -> tuple[jax.Array, jax.Array]:
    """Positions of P image tokens and T text tokens in one sequence.

    The image follows the leading text that does not see it: with two patches `i`, text
    `a b` before and `c d` after the image, the sequence is `a b i i c d`, so the image
    is at 2 3 and the text at 0 1 4 5. A row without an image has its image tokens at
    the end, where causal attention hides them.

    Args:
      image_mask: bool[B, T]; a row without True has no image.
      num_patches: P.

    Returns:
      int32[B, P] and int32[B, T].
    """
    length = image_mask.shape[1]
    has_image = image_mask.any(axis=1, keepdims=True)
    first = jnp.argmax(image_mask, axis=1, keepdims=True)
    before = jnp.where(has_image, first, length)
    image = before + jnp.arange(num_patches)[None]
    text = jnp.arange(length)[None]
    return image, text + jnp.where(text >= before, num_patches, 0)
