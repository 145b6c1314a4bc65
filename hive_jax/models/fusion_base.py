"""The interface between `Hive` and a fusion; hive_jax/models/fusion.py has the fusions."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models import layer_stack
from hive_jax.models.config import DecoderConfig
from hive_jax.models.cross_attention import Projector
from hive_jax.models.fusion_kinds import Connections
from hive_jax.models.placement import ONE_DEVICE, Placement, apply_block


class Fusion(nn.Module):
    """Base class: a projector per connection, stacked on a leading axis M.

    Attributes:
      connections: the M pairs in use.
      encoder_width: D.
      config: architecture of the decoder.
      placement: sharding constraints.
      projector_kind: one of its `FusionKind.projectors`.
      image_kv, image_rope: of JointFusion; see `HiveConfig`.
      extends_attention: whether `before_layer` changes the layer's own attention.
      uses_layer_params: whether `prepare` needs the parameters of the connected layers.
      exact_gelu: GELU of the projectors without the tanh approximation.
    """

    connections: Connections
    encoder_width: int
    config: DecoderConfig
    placement: Placement = ONE_DEVICE
    projector_kind: str = "ln_mlp"
    image_kv: str = "shared"
    image_rope: bool = True

    # Class attributes, not fields: properties of a kind of fusion, not of a model.
    extends_attention = False
    uses_layer_params = False
    exact_gelu = False

    @staticmethod
    def image_tokens_in_text(num_patches: int) -> int:
        """Returns how many image tokens pass through the decoder with the text."""
        return 0

    def setup(self):
        # One patch: parameters do not depend on the number of patches.
        features = jnp.zeros((1, 1, self.encoder_width))
        init = layer_stack.stacked_init(
            self._projector(), len(self.connections), features
        )
        self.projector = layer_stack.stacked_params(self, "projector", init)

    def _projector(self) -> Projector:
        # parent=None: applied to slices of the stacked parameters, not a submodule.
        width, kind = self.config.width, self.projector_kind
        return Projector(width, kind, self.exact_gelu, parent=None)

    def project(self, features: jax.Array) -> list[jax.Array]:
        """Projects features[M, B, P, D] to M arrays [B, P, E], each by its projector."""
        # A loop and not vmap: with fsdp, one projector is gathered at a time.
        module, placement = self._projector(), self.placement
        return [
            placement.shard_activations(apply_block(module, placement, params, feature))
            for params, feature in zip(
                layer_stack.unstack(self.projector), features, strict=True
            )
        ]

    def prepare(
        self,
        features: jax.Array,
        text: jax.Array,
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Computes once per image what the decoder needs of it.

        Args:
          features: [M, B, P, D], outputs of the connected encoder depths.
          text: token embeddings [B, T, E].
          image_mask: bool[B, T], tokens that see the image.
          layers: parameters of each connected decoder layer, if `uses_layer_params`.

        Returns:
          The sequence [B, S, E] that the decoder runs on; the position int32[B, T] of
          each text token in it; a tree with the keys and values of each connection,
          which `before_layer` receives and the decode state stores.
        """
        raise NotImplementedError

    def before_layer(
        self,
        connection: int,
        x: jax.Array,
        image_kv: Any,
        image_mask: jax.Array,
    ) -> tuple[jax.Array, Callable | None]:
        """Lets the image act on the hidden states before a connected layer.

        Args:
          connection: index of the connection, from 0.
          x: hidden states [B, T, E] before the layer.
          image_kv: third result of `prepare`.
          image_mask: bool[B, T], tokens that see the image.

        Returns:
          The hidden states for the layer [B, T, E], and None. A fusion that
          `extends_attention` returns a function in place of None, which the layer's own
          attention calls in place of `attention.attend`, with the rotated queries and
          keys, after these were cached.
        """
        return x, None

    def attention_weights(
        self,
        connection: int,
        x: jax.Array,
        image_kv: Any,
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> jax.Array:
        """Computes the attention weights of text on patches.

        Args:
          connection, x, image_kv, image_mask: as for `before_layer`.
          layers: as for `prepare`.

        Returns:
          float32[B, N, T, P].
        """
        raise NotImplementedError

    @staticmethod
    def count_flops(
        count, encoder, decoder, tokens: int, features: bool, text: bool
    ) -> bool:
        """Adds the matrix products of one connection to a FLOP counter.

        Args:
          count: counter with `product`, `attention`, `project` and `trains`; see
            hive_jax/training/flops.py.
          encoder, decoder: SiglipConfig and DecoderConfig.
          tokens: number of text tokens.
          features: whether the encoder's features have gradients.
          text: whether the hidden states before the connection have gradients.

        Returns:
          Whether the hidden states after the connection have gradients.
        """
        raise NotImplementedError


def text_position(tokens: jax.Array) -> jax.Array:
    """Returns the positions 0 .. T - 1, int32[B, T], of tokens [B, T, ...]."""
    position = jnp.arange(tokens.shape[1])[None]
    return jnp.broadcast_to(position, tokens.shape[:2])


def take_text(x: jax.Array, position: jax.Array) -> jax.Array:
    """Takes the text [B, T, E] out of x[B, S, E], by its position int32[B, T]."""
    if x.shape[1] == position.shape[1]:  # no image tokens among the text
        return x
    return jnp.take_along_axis(x, position[..., None], axis=1)
