"""HIVE: an LLM that cross-attends to chosen depths of a vision encoder.

    images -> img block 1 -> 2 -------> 3 -> 4 -------> ...
                             |               |
                         projector       projector            branch `fusion`
                        keys, values    keys, values
                             |               |
    tokens -> llm layer 1 -> + layer 2 -> 3 -> + layer 4 -> ... -> hidden -> logits

(Connections (2, 2) and (4, 4); a `+` adds tanh(gate) * cross_attention.)

From an image to the loss:
  1. `Hive._embed` runs the encoder, which returns the outputs of the connected depths,
     and the fusion, which turns each into keys and values (`Fusion.prepare`).
  2. `Hive._run_layers` runs the decoder; before each connected layer the fusion adds the
     cross-attention to the hidden states (`Fusion.before_layer`).
  3. `Hive.__call__` returns the hidden states of the text; the loss applies the output
     head to supervised tokens alone (hive_jax/training/losses.py), and its gradient
     reaches every connected depth directly.

To connect another depth, add its pair to `connections` (config.model.connections). To add
a fusion, see hive_jax/models/fusion.py; nothing changes here.

The parameter tree has the branches `img`, `llm` and `fusion`; stages choose by these
names what trains.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hive_jax.models import decoder, layer_stack
from hive_jax.models.attention import KeyValues
from hive_jax.models.config import HiveConfig
from hive_jax.models.decoder import Decoder
from hive_jax.models.execution import ModelExecution
from hive_jax.models.fusion import fusion_class
from hive_jax.models.fusion_base import take_text, text_position
from hive_jax.models.placement import ONE_DEVICE, Placement
from hive_jax.models.siglip import SiglipEncoder


@flax.struct.dataclass
class DecodeState:
    """State of decoding, from `prefill` to `decode_step` to the next.

    Attributes:
      caches: KV cache of each decoder layer, a slot for each position.
      image_kv: keys and values of the image, a tree of the fusion's own.
      image_mask: bool[B, 1], whether new tokens see an image.
    """

    caches: tuple[KeyValues, ...]
    image_kv: Any
    image_mask: jax.Array


class Hive(nn.Module):
    """Encoder, decoder and the fusion between them.

    A token whose `image_mask` is False (text before the image, or a sample without one)
    does not depend on the image.

    Attributes:
      config: architecture; encoder and decoder are given.
      dtype: of the computation.
      placement: sharding constraints.
      execution: scan, remat and flash attention of each tower.
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
        # Without connections, the model has no encoder and no parameters of one.
        if self.connections:
            self.img = SiglipEncoder(
                c.encoder, self.dtype, self.placement, execution.encoder
            )
            options = c.projector_kind, c.image_kv, c.image_rope
            self.fusion = fusion_class(c.fusion)(
                self.connections, c.encoder.width, c.decoder, self.placement, *options
            )

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        image_mask: jax.Array,
        offsets: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the forward pass of training.

        Args:
          images: float[B, image_size, image_size, 3] in [-1, 1].
          tokens: int32[B, T].
          image_mask: bool[B, T], tokens that see the image.
          offsets: [L, B, P, D], added to the outputs of the encoder's blocks; zeros, to
            differentiate the loss with respect to the features.

        Returns:
          Hidden states [B, T, E] of the text after the final norm, for `logits`.
        """
        return self.hidden_states(self.encode(images, offsets), tokens, image_mask)

    def encode(
        self, images: jax.Array, offsets: jax.Array | None = None
    ) -> jax.Array | None:
        """Computes the features that the connections read, one for each, in their order.

        Args:
          images, offsets: as for `__call__`.

        Returns:
          [M, B, P, D]; None for a model without connections.
        """
        if not self.connections:
            return None
        # "cascaded" requests a depth repeatedly.
        depths = tuple(depth for depth, _ in self.connections)
        return self.img(images, depths, offsets).features

    def hidden_states(
        self, features: jax.Array | None, tokens: jax.Array, image_mask: jax.Array
    ) -> jax.Array:
        """Runs the decoder on texts and the features of their images.

        Args:
          features: of `encode`.
          tokens, image_mask: as for `__call__`.

        Returns:
          Hidden states [B, T, E], as of `__call__`.
        """
        # [B, S, E]: S = T, or P + T with image tokens in the text.
        x, position, image_kv = self._embed(features, tokens, image_mask)
        x, _, _ = self._run_layers(x, image_kv, image_mask)
        return self.llm.final_norm(take_text(x, position))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits float32[B, T, V] from hidden states [B, T, E]."""
        return self.llm.logits(hidden)

    def prefill(
        self,
        images: jax.Array,
        tokens: jax.Array,
        image_mask: jax.Array,
        max_new_tokens: int,
    ) -> tuple[jax.Array, jax.Array, DecodeState]:
        """Prefill: encodes images and prompts, and fills the KV cache.

        Prompts may be padded on the right: each is continued after its own last token.

        Args:
          images, tokens, image_mask: as for `__call__`.
          max_new_tokens: slots to reserve in the cache for `decode_step`.

        Returns:
          Hidden states [B, T, E]; the position int32[B, T] of each token, to which the
          caller adds 1 for the next; the state for `decode_step`.
        """
        features = self.encode(images)
        x, position, image_kv = self._embed(features, tokens, image_mask)
        c = self.config.decoder
        # x may be longer than the text: image tokens have slots of their own.
        shape = (len(x), x.shape[1] + max_new_tokens, c.num_kv_heads, c.head_dim)
        # All layers may start from the same zeros: an update returns new arrays.
        empty = KeyValues(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype))
        x, caches, _ = self._run_layers(
            x, image_kv, image_mask, text_position(x), (empty,) * c.depth
        )
        hidden = self.llm.final_norm(take_text(x, position))
        # The text after an image sees it, and so does whatever is generated.
        image_mask = image_mask.any(1, keepdims=True)
        return hidden, position, DecodeState(caches, image_kv, image_mask)

    def decode_step(
        self, tokens: jax.Array, position: jax.Array, state: DecodeState
    ) -> tuple[jax.Array, DecodeState]:
        """Runs on the next tokens of each text.

        Args:
          tokens: int32[B, T].
          position: int32[B, T] of these tokens.
          state: result of `prefill` or of the previous step.

        Returns:
          Hidden states [B, T, E] and the new state.
        """
        # The image is in `state` already: as keys and values, or as tokens in the caches.
        x = self.llm.embed(tokens)
        x, caches, _ = self._run_layers(
            x, state.image_kv, state.image_mask, position, state.caches
        )
        return self.llm.final_norm(x), state.replace(caches=caches)

    def attention_weights(
        self, images: jax.Array, tokens: jax.Array, image_mask: jax.Array
    ) -> jax.Array:
        """Computes the attention weights of text on patches, for each connection.

        Args:
          images, tokens, image_mask: as for `__call__`.

        Returns:
          float32[M, B, N, T, P]; zero where a token sees no image.
        """
        x, _, image_kv = self._embed(self.encode(images), tokens, image_mask)
        _, _, inputs = self._run_layers(x, image_kv, image_mask)
        layers = self._connected_layers()
        # Each is [B, N, T, P], of the hidden states before the connected layer.
        weights = [
            self.fusion.attention_weights(connection, x, image_kv, image_mask, layers)
            for connection, x in enumerate(inputs)
        ]
        return jnp.stack(weights)

    def _embed(self, features, tokens, image_mask):
        """Embeds tokens and features; returns the results of `Fusion.prepare`."""
        text = self.llm.embed(tokens)
        if not self.connections:
            return text, text_position(text), ()
        layers = self._connected_layers()
        return self.fusion.prepare(features, text, image_mask, layers)

    def _connected_layers(self) -> list[dict]:
        """Returns the parameters of the connected layers for a fusion that uses them."""
        numbers = [layer for _, layer in self.connections]
        return self.llm.layer_params(numbers) if self.fusion.uses_layer_params else []

    def _run_layers(self, x, image_kv, image_mask, position=None, caches=()):
        """Runs all decoder layers: the one loop of training, prefill and decode_step.

        Args:
          x: [B, S, E].
          image_kv: third result of `Fusion.prepare`.
          image_mask: bool[B, T] of the text; bool[B, 1] in decode_step.
          position: int32[B, S], with caches.
          caches: KV cache of each layer; () in training.

        Returns:
          x; the updated caches; the hidden states before each connection.
        """
        connected = {
            layer: number for number, (_, layer) in enumerate(self.connections)
        }
        # Segments start at connected layers, so that everything between two connections
        # is one scan. A connected layer whose own attention changes is its own segment.
        starts = {1, *connected}
        if connected and self.fusion.extends_attention:
            starts |= {layer + 1 for layer in connected}
        # No segment starts after the last layer.
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
            # Layers count from 1. In training, the slice of () is () again.
            x, new = run_layers(x, position, caches[start - 1 : end], extend_attention)
            updated += new
        return x, updated, inputs


def unstack_layers(params: dict) -> dict:
    """Converts a Hive's parameters for decoding; see `decoder.unstack_layers`."""
    fusion = {
        name: layer_stack.to_unstacked_layers(p)
        for name, p in params.get("fusion", {}).items()
    }
    llm = decoder.unstack_layers(params["llm"])
    return params | {"llm": llm} | ({"fusion": fusion} if fusion else {})
