"""HIVE on one screen: an LLM that reads chosen depths of a vision encoder.

    images -> img  -> features of the connected depths
    tokens -> llm layer, layer, [read depth 2] layer, layer, [read depth 4] ... -> logits

The parameter tree has three branches: `img`, `llm` and `fusion` (what connects them).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models.fusion import Connections, Fusion, resolve_connections
from hive_jax.models.gemma import Gemma, GemmaConfig
from hive_jax.models.siglip import SiglipConfig, SiglipEncoder


@dataclasses.dataclass(frozen=True)
class HiveConfig:
    """The whole model.

    Attributes:
      fusion: "hive": each connected decoder layer reads its own encoder depth;
        "cascaded": all of them read the last one; "self_attention": the image's
        tokens stand in the text (LLaVA); "none": the decoder alone.
      connections: pairs (encoder depth, decoder layer), counted from 1; empty for
        evenly spaced ones.
      num_connections: how many of these; 0 for 25 % of the depths. Not read where
        connections are given.
    """

    encoder: SiglipConfig = dataclasses.field(default_factory=SiglipConfig)
    decoder: GemmaConfig = dataclasses.field(default_factory=GemmaConfig)
    fusion: str = "hive"
    connections: Connections = ()
    num_connections: int = 0

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

    `logits` turns hidden states into float32[B, T, V]. A position that does not
    see the image (text before it, or a sample without one) does not depend on it.
    `dtype` is the dtype of the computation.
    """

    config: HiveConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.connections = c.resolved_connections()
        self.llm = Gemma(c.decoder, self.dtype)
        if self.connections:
            self.img = SiglipEncoder(c.encoder, self.dtype)
            self.fusion = Fusion(
                c.fusion, len(self.connections), c.encoder.width, c.decoder
            )

    def __call__(
        self, images: jax.Array, tokens: jax.Array, sees_image: jax.Array
    ) -> jax.Array:
        if self.config.fusion in ("hive", "cascaded"):
            hidden = self._cross_attended(images, tokens, sees_image)
        elif self.config.fusion == "self_attention":
            hidden = self._concatenated(images, tokens, sees_image)
        else:
            hidden = self._decode(self.llm.embed(tokens), _counting(tokens))
        return self.llm.final_norm(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.llm.logits(hidden)

    def _cross_attended(self, images, tokens, sees_image):
        depths = tuple(depth for depth, _ in self.connections)
        readers = self.fusion.readers(self.img(images, depths).features, sees_image)
        before = {layer: r for (_, layer), r in zip(self.connections, readers)}

        hidden = self.llm.embed(tokens)
        starts = sorted({1, *before})
        ends = [start - 1 for start in starts[1:]] + [self.config.decoder.depth]
        segments = self.llm.segments(_counting(tokens), ends)
        for start, layers in zip(starts, segments, strict=True):
            if start in before:
                hidden = before[start](hidden)
            hidden = layers(hidden)
        return hidden

    def _concatenated(self, images, tokens, sees_image):
        features = self.img(images, (self.connections[0][0],)).features
        image_tokens = self.fusion.project(features)[0]
        position, visible = interleave(sees_image, image_tokens.shape[1])
        text = self.llm.embed(tokens)
        x = jnp.concatenate([image_tokens.astype(text.dtype), text], axis=1)
        return self._decode(x, position, visible)[:, image_tokens.shape[1] :]

    def _decode(self, x, position, visible=True):
        (layers,) = self.llm.segments(position, (self.config.decoder.depth,), visible)
        return layers(x)


def _counting(tokens: jax.Array) -> jax.Array:
    """Positions 0, 1, 2, ... of int32[B, T]."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def interleave(sees_image: jax.Array, num_patches: int) -> tuple[jax.Array, jax.Array]:
    """Where P image tokens stored before T text tokens stand in the sequence.

    The image comes after the leading text that does not see it. Two patches `i`,
    text `a b` before and `c d` after the image are stored as `i i a b c d` and have
    the positions 2 3 0 1 4 5; causal attention in these is `a b i i c d`.

    Args:
      sees_image: bool[B, T]; a row without True has no image.
      num_patches: P.

    Returns:
      position int32[B, P + T], and visible bool[B, 1, P + T]: False for the image
      tokens of a row without an image.
    """
    has_image = sees_image.any(axis=1, keepdims=True)
    before = jnp.where(has_image, jnp.argmax(sees_image, axis=1, keepdims=True), 0)
    image = before + jnp.arange(num_patches)[None]
    text = jnp.arange(sees_image.shape[1])[None]
    text = text + jnp.where(has_image & (text >= before), num_patches, 0)
    position = jnp.concatenate([image, text], axis=1)
    visible = jnp.concatenate(
        [jnp.broadcast_to(has_image, image.shape), jnp.ones_like(sees_image)], axis=1
    )
    return position, visible[:, None, :]
