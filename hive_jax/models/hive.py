"""HIVE on one screen: an LLM that reads chosen depths of a vision encoder.

    images -> img  -> features of the connected depths
    tokens -> llm layer, layer, [read depth 2] layer, layer, [read depth 4] ... -> logits

The parameter tree has three branches: `img`, `llm` and `fusion` (what connects them).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.cache import KeysValues, Memory
from hive_jax.models.fusion import Connections, Fusion, resolve_connections
from hive_jax.models.gemma import Gemma, GemmaConfig
from hive_jax.models.placement import ONE_DEVICE, Placement
from hive_jax.models.siglip import SiglipConfig, SiglipEncoder
from hive_jax.models.stack import ModelExecution


@dataclasses.dataclass(frozen=True)
class HiveConfig:
    """The whole model.

    Attributes:
      encoder, decoder: None where the initial weights decide; `Hive` needs both.
      fusion: "hive": each connected decoder layer reads its own encoder depth;
        "cascaded": all of them read the last one; "self_attention": the image's
        tokens stand in the text (LLaVA); "none": the decoder alone.
      connections: pairs (encoder depth, decoder layer), counted from 1; empty for
        evenly spaced ones.
      num_connections: how many of these; 0 for 25 % of the depths. Not read where
        connections are given.
    """

    encoder: SiglipConfig | None = None
    decoder: GemmaConfig | None = None
    fusion: str = "hive"
    connections: Connections = ()
    num_connections: int = 0

    @property
    def image_size(self) -> int:
        """Side of the images in pixels; 0 without an encoder."""
        return self.encoder.image_size if self.encoder else 0

    def resolved_connections(self) -> Connections:
        """The connections in use; see `resolve_connections`."""
        return resolve_connections(
            self.fusion,
            self.connections,
            self.encoder.depth,
            self.decoder.depth,
            self.num_connections,
        )


class Hive(nn.Module):
    """images float[B, height, width, 3] in [-1, 1], tokens int32[B, T] and
    sees_image bool[B, T] -> hidden [B, T, E] after the final norm.

    `offsets` [L, B, P, D] are added to the outputs of the encoder's blocks. `logits`
    turns hidden states into float32[B, T, V]. A position that does not
    see the image (text before it, or a sample without one) does not depend on it.
    `dtype` is the dtype of the computation.
    """

    config: HiveConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: ModelExecution = ModelExecution()

    def setup(self):
        c = self.config
        self.connections = c.resolved_connections()
        execution = self.execution
        self.llm = Gemma(c.decoder, self.dtype, self.placement, execution.decoder)
        if self.connections:
            self.img = SiglipEncoder(
                c.encoder, self.dtype, self.placement, execution.encoder
            )
            count, width = len(self.connections), c.encoder.width
            self.fusion = Fusion(c.fusion, count, width, c.decoder, self.placement)

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        sees_image: jax.Array,
        offsets: jax.Array | None = None,
    ) -> jax.Array:
        if self.config.fusion in ("hive", "cascaded"):
            looked = self._look(images, offsets)
            hidden = self._cross_attended(looked, tokens, sees_image)[0]
        elif self.config.fusion == "self_attention":
            hidden = self._concatenated(images, tokens, sees_image, offsets)
        else:
            hidden = self._decode(self.llm.embed(tokens))
        return self.llm.final_norm(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.llm.logits(hidden)

    def read(
        self, images: jax.Array, tokens: jax.Array, sees_image: jax.Array, room: int
    ) -> tuple[jax.Array, jax.Array, Memory]:
        """As when called, and what `write` goes on from.

        Rows may be padded on the right: each is continued after its own last token.

        Args:
          room: tokens that can be written.

        Returns:
          hidden [B, T, E]; position int32[B, T] of each token, the next one's being one
          more; the memory.
        """
        x, kept = self.llm.embed(tokens), ()
        position = jnp.broadcast_to(jnp.arange(x.shape[1])[None], tokens.shape)
        places, readers = position, {}
        if self.config.fusion == "self_attention":
            x, places = self._with_image(images, x, sees_image)
            position = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        elif self.connections:
            kept = self._look(images)
            readers = self._readers(kept, sees_image)
        c = self.config.decoder
        slots = jnp.zeros((len(x), x.shape[1] + room, c.num_kv_heads, c.head_dim))
        cache = KeysValues(slots.astype(x.dtype), slots.astype(x.dtype))
        memory = Memory((cache,) * c.depth, kept, sees_image.any(1, keepdims=True))
        hidden, memory = self._remembered(x, position, readers, memory)
        return jnp.take_along_axis(hidden, places[..., None], axis=1), places, memory

    def write(
        self, tokens: jax.Array, position: jax.Array, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        """Next tokens int32[B, T] at position int32[B, T] -> hidden [B, T, E]."""
        readers = {}
        if memory.image:
            readers = self._readers(memory.image, memory.sees_image)
        return self._remembered(self.llm.embed(tokens), position, readers, memory)

    def _remembered(self, x, position, readers, memory):
        caches = []
        layers = zip(self.llm.cached_layers(), memory.text, strict=True)
        for number, (layer, cache) in enumerate(layers, 1):
            if number in readers:
                x, _ = readers[number](x)
            x, cache = layer(x, position, cache)
            caches.append(cache)
        return self.llm.final_norm(x), memory.replace(text=tuple(caches))

    def attention_maps(
        self, images: jax.Array, tokens: jax.Array, sees_image: jax.Array
    ) -> jax.Array:
        """Where the cross-attention of each connection looks, float32[M, B, N, T, P]:
        the shares of a token's heads among the patches, zero where it sees no image."""
        looked = self._look(images)
        return jnp.stack(self._cross_attended(looked, tokens, sees_image)[1])

    def _look(self, images, offsets=None) -> tuple[KeysValues, ...]:
        """What the connections read of the images."""
        depths = tuple(depth for depth, _ in self.connections)
        return self.fusion.keys_values(self.img(images, depths, offsets).features)

    def _readers(self, looked, sees_image) -> dict:
        """Decoder layer -> what happens before it."""
        readers = self.fusion.readers(looked, sees_image)
        return {layer: r for (_, layer), r in zip(self.connections, readers)}

    def _cross_attended(self, looked, tokens, sees_image):
        """Hidden states, and where each connection looked, which is computed only if
        it is asked for."""
        before, shares = self._readers(looked, sees_image), []
        hidden = self.llm.embed(tokens)
        starts = sorted({1, *before})
        ends = [start - 1 for start in starts[1:]] + [self.config.decoder.depth]
        segments = self.llm.segments(ends)
        for start, layers in zip(starts, segments, strict=True):
            if start in before:
                hidden, share = before[start](hidden)
                shares.append(share)
            hidden = layers(hidden)
        return hidden, shares

    def _concatenated(self, images, tokens, sees_image, offsets):
        text = self.llm.embed(tokens)
        x, places = self._with_image(images, text, sees_image, offsets)
        return jnp.take_along_axis(self._decode(x), places[..., None], axis=1)

    def _with_image(self, images, text, sees_image, offsets=None):
        """Image and text in one sequence [B, P + T, E], and where the text is."""
        features = self.img(images, (self.connections[0][0],), offsets).features
        image = self.fusion.project(features)[0]
        image_place, text_place = interleave(sees_image, image.shape[1])
        x = jnp.concatenate([image.astype(text.dtype), text], axis=1)
        order = jnp.argsort(jnp.concatenate([image_place, text_place], axis=1), axis=1)
        return jnp.take_along_axis(x, order[..., None], axis=1), text_place

    def _decode(self, x):
        (layers,) = self.llm.segments((self.config.decoder.depth,))
        return layers(x)


def interleave(sees_image: jax.Array, num_patches: int) -> tuple[jax.Array, jax.Array]:
    """The places of P image tokens and T text tokens in one sequence.

    The image comes after the leading text that does not see it: with two patches `i`,
    text `a b` before and `c d` after the image, the sequence is `a b i i c d`, so the
    image is at 2 3 and the text at 0 1 4 5. A row without an image has its image
    tokens at the end, where causal attention hides them.

    Args:
      sees_image: bool[B, T]; a row without True has no image.
      num_patches: P.

    Returns:
      int32[B, P] and int32[B, T].
    """
    length = sees_image.shape[1]
    has_image = sees_image.any(axis=1, keepdims=True)
    first = jnp.argmax(sees_image, axis=1, keepdims=True)
    before = jnp.where(has_image, first, length)
    image = before + jnp.arange(num_patches)[None]
    text = jnp.arange(length)[None]
    return image, text + jnp.where(text >= before, num_patches, 0)
