"""HIVE on one screen: an LLM that attends to chosen depths of a vision encoder.

    images -> img -> features of the connected depths -> keys and values
    tokens -> llm layer, layer, [+ depth 2] layer, layer, [+ depth 4] layer ... -> logits

To connect another depth, add its pair to `HiveConfig.connections`; how a connection
acts is the fusion's (hive_jax/models/fusion.py). The parameter tree has three
branches: `img`, `llm` and `fusion`.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hive_jax.models import decoder, layer_stack
from hive_jax.models.attention import KeyValues
from hive_jax.models.decoder import Decoder, DecoderConfig
from hive_jax.models.fusion import (
    Connections,
    Fusion,
    fusion_named,
    resolve_connections,
    text_position,
)
from hive_jax.models.layer_stack import ModelExecution
from hive_jax.models.layers import ONE_DEVICE, Placement
from hive_jax.models.siglip import SiglipConfig, SiglipEncoder


@dataclasses.dataclass(frozen=True)
class HiveConfig:
    """The whole model.

    Attributes:
      encoder, decoder: None where the initial weights decide; `Hive` needs both.
      fusion: a key of FUSIONS. "hive": each connected decoder layer attends to its own
        encoder depth; "cascaded": all of them to the last one; "self_attention": image
        tokens in the text (LLaVA); "none": the decoder alone.
      connections: pairs (encoder depth, decoder layer), counted from 1; empty for
        evenly spaced ones.
      num_connections: how many evenly spaced ones; 0 for 25 % of the depths. Ignored
        if `connections` are given.
    """

    encoder: SiglipConfig | None = None
    decoder: DecoderConfig | None = None
    fusion: str = "hive"
    connections: Connections = ()
    num_connections: int = 0

    @property
    def fusion_class(self) -> type[Fusion]:
        """The class of `fusion`. Raises ValueError for an unknown name."""
        return fusion_named(self.fusion)

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


@flax.struct.dataclass
class DecodeState:
    """What `prefill` computes and `decode_step` continues from.

    Attributes:
      caches: the KV cache of each decoder layer, a slot for each position.
      image_kv: the image's keys and values of each connection.
      image_mask: bool[B, 1], whether the new tokens see an image.
    """

    caches: tuple[KeyValues, ...]
    image_kv: tuple[KeyValues, ...]
    image_mask: jax.Array


class Hive(nn.Module):
    """Hidden states [B, T, E] after the final norm; `logits` turns them into logits.

    A token whose `image_mask` is False (text before the image, or a sample without one)
    does not depend on the image. `dtype` is the dtype of the computation.
    """

    config: HiveConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: ModelExecution = ModelExecution()

    def setup(self):
        c = self.config
        self.connections = c.resolved_connections()
        execution = self.execution
        self.llm = Decoder(c.decoder, self.dtype, self.placement, execution.decoder)
        if self.connections:
            self.img = SiglipEncoder(
                c.encoder, self.dtype, self.placement, execution.encoder
            )
            count, width = len(self.connections), c.encoder.width
            self.fusion = c.fusion_class(count, width, c.decoder, self.placement)

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        image_mask: jax.Array,
        offsets: jax.Array | None = None,
    ) -> jax.Array:
        """The forward pass of training.

        Args:
          images: float[B, height, width, 3] in [-1, 1].
          tokens: int32[B, T].
          image_mask: bool[B, T], tokens that see the image.
          offsets: [L, B, P, D], added to the outputs of the encoder's blocks.

        Returns:
          hidden [B, T, E].
        """
        x, position, image_kv = self._embed(images, tokens, image_mask, offsets)
        x, _, _ = self._run_layers(x, image_kv, image_mask)
        return self.llm.final_norm(_text_of(x, position))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, T, E] -> float32[B, T, V]."""
        return self.llm.logits(hidden)

    def prefill(
        self,
        images: jax.Array,
        tokens: jax.Array,
        image_mask: jax.Array,
        max_new_tokens: int,
    ) -> tuple[jax.Array, jax.Array, DecodeState]:
        """Runs on images and prompts, and fills the KV cache.

        Prompts may be padded on the right: each is continued after its own last token.

        Args:
          images, tokens, image_mask: as when called.
          max_new_tokens: slots of the cache for `decode_step`.

        Returns:
          hidden [B, T, E]; position int32[B, T] of each token, where the next one's is
          one more; the state for `decode_step`.
        """
        x, position, image_kv = self._embed(images, tokens, image_mask)
        c = self.config.decoder
        shape = (len(x), x.shape[1] + max_new_tokens, c.num_kv_heads, c.head_dim)
        empty = KeyValues(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype))
        x, caches, _ = self._run_layers(
            x, image_kv, image_mask, text_position(x), (empty,) * c.depth
        )
        hidden = self.llm.final_norm(_text_of(x, position))
        image_mask = image_mask.any(1, keepdims=True)
        return hidden, position, DecodeState(caches, image_kv, image_mask)

    def decode_step(
        self, tokens: jax.Array, position: jax.Array, state: DecodeState
    ) -> tuple[jax.Array, DecodeState]:
        """Runs on the next tokens of each text.

        Args:
          tokens: int32[B, T].
          position: int32[B, T], of these tokens.
          state: of `prefill`, or of the last step.

        Returns:
          hidden [B, T, E] and the new state.
        """
        x = self.llm.embed(tokens)
        x, caches, _ = self._run_layers(
            x, state.image_kv, state.image_mask, position, state.caches
        )
        return self.llm.final_norm(x), state.replace(caches=caches)

    def attention_weights(
        self, images: jax.Array, tokens: jax.Array, image_mask: jax.Array
    ) -> jax.Array:
        """Attention weights of each connection, float32[M, B, N, T, P], of tokens on
        patches; zero where a token sees no image. Arguments as when called."""
        x, _, image_kv = self._embed(images, tokens, image_mask)
        _, _, inputs = self._run_layers(x, image_kv, image_mask)
        weights = [
            self.fusion.attention_weights(connection, x, image_kv, image_mask)
            for connection, x in enumerate(inputs)
        ]
        return jnp.stack(weights)

    def _embed(self, images, tokens, image_mask, offsets=None):
        """The sequence that the decoder runs on, the position of the text in it, and
        the image's keys and values; see `Fusion.prepare`."""
        text = self.llm.embed(tokens)
        if not self.connections:
            return text, text_position(text), ()
        depths = tuple(depth for depth, _ in self.connections)
        features = self.img(images, depths, offsets).features
        return self.fusion.prepare(features, text, image_mask)

    def _run_layers(self, x, image_kv, image_mask, position=None, caches=()):
        """All decoder layers, in training (without caches), prefill and decoding.

        Returns:
          x; the updated caches; the hidden states before each connection.
        """
        connected = {
            layer: number for number, (_, layer) in enumerate(self.connections)
        }
        starts = {1, *connected}
        if connected and self.fusion.extends_attention:
            starts |= {layer + 1 for layer in connected}
        starts = sorted(starts - {self.config.decoder.depth + 1})
        ends = [start - 1 for start in starts[1:]] + [self.config.decoder.depth]
        updated, inputs = (), []
        segments = self.llm.segments(ends)
        for start, end, run_layers in zip(starts, ends, segments, strict=True):
            extend_attention = None
            if start in connected:
                inputs.append(x)
                # In HIVE: x = x + tanh(gate) * cross_attention(x, image_kv)
                x, extend_attention = self.fusion.before_layer(
                    connected[start], x, image_kv, image_mask
                )
            x, new = run_layers(x, position, caches[start - 1 : end], extend_attention)
            updated += new
        return x, updated, inputs


def _text_of(x: jax.Array, position: jax.Array) -> jax.Array:
    """Hidden states [B, T, E] of the text in x[B, S, E], at position int32[B, T]."""
    if x.shape[1] == position.shape[1]:
        return x
    return jnp.take_along_axis(x, position[..., None], axis=1)


def unstack_layers(params: dict) -> dict:
    """Parameters of a Hive for decoding; see `decoder.unstack_layers`."""
    fusion = {
        name: layer_stack.to_unstacked_layers(p)
        for name, p in params.get("fusion", {}).items()
    }
    llm = decoder.unstack_layers(params["llm"])
    return params | {"llm": llm} | ({"fusion": fusion} if fusion else {})
