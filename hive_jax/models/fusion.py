"""Fusions: how the decoder attends to the encoder. One class each, in FUSION_CLASSES.

"joint" is in joint_attention.py.

`Hive` calls `prepare` once per image, and `before_layer` before each connected layer.

To add a fusion:
  1. Subclass `Fusion` (fusion_base.py) and implement `prepare`, which either computes keys
     and values (as in CrossAttentionFusion) or inserts image tokens into the text (as in
     PrefixFusion).
  2. In the first case, implement `before_layer`.
  3. Implement `count_flops`, for MFU.
  4. Add its properties to FUSIONS (fusion_kinds.py), and the class to FUSION_CLASSES;
     `config.model.fusion` is the key of both.
An export also needs a row for each parameter in hive_jax/weights/hf_models.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hive_jax.models import layer_stack
from hive_jax.models.attention import KeyValues
from hive_jax.models.cross_attention import CrossAttention
from hive_jax.models.fusion_base import Fusion, text_position
from hive_jax.models.fusion_kinds import fusion_kind
from hive_jax.models.joint_attention import JointFusion
from hive_jax.models.placement import apply_block


class CrossAttentionFusion(Fusion):
    """HIVE: each connected layer cross-attends to its own encoder depth before it runs.

    x = x + tanh(gate) * cross_attention(x, image_kv)

    Patches never become queries and never pass through the decoder's MLPs, which is what
    makes HIVE cheaper than image tokens in the text.
    """

    def setup(self):
        super().setup()
        # Text and projected features of length 1: parameters do not depend on lengths.
        x = jnp.zeros((1, 1, self.config.width))
        block = CrossAttention(self.config, parent=None)
        example = (x, x, jnp.ones((1, 1), bool))
        init = layer_stack.stacked_init(block, len(self.connections), *example)
        self.cross_attention = layer_stack.stacked_params(self, "cross_attention", init)
        # Unstacked here once: indexing the stack at each use would add a zero-padded
        # gradient of the whole stack per use.
        self.blocks = layer_stack.unstack(self.cross_attention)

    def _apply(self, connection: int, method: str, *inputs):
        # parent=None: a function of parameters, which are declared in `setup`.
        block = CrossAttention(self.config, parent=None)
        params = self.blocks[connection]
        return apply_block(block, self.placement, params, *inputs, method=method)

    def prepare(
        self,
        features: jax.Array,
        text: jax.Array,
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> tuple[jax.Array, jax.Array, tuple[KeyValues, ...]]:
        """Computes each connection's keys and values; returns the text unchanged.

        Args:
          features, text, image_mask, layers: see `Fusion.prepare`.
        """
        image_kv = tuple(
            self._apply(connection, "key_values", projected)
            for connection, projected in enumerate(self.project(features))
        )
        return text, text_position(text), image_kv

    def before_layer(
        self,
        connection: int,
        x: jax.Array,
        image_kv: tuple[KeyValues, ...],
        image_mask: jax.Array,
    ) -> tuple[jax.Array, None]:
        """Adds the gated cross-attention to x.

        Args:
          connection, x, image_kv, image_mask: see `Fusion.before_layer`.
        """
        inputs = x, image_kv[connection], image_mask
        return x + self._apply(connection, "attend", *inputs)[0], None

    def attention_weights(
        self,
        connection: int,
        x: jax.Array,
        image_kv: tuple[KeyValues, ...],
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> jax.Array:
        """Computes the weights of the cross-attention, float32[B, N, T, P].

        Args:
          connection, x, image_kv, image_mask, layers: see `Fusion.attention_weights`.
        """
        inputs = x, image_kv[connection], image_mask
        return self._apply(connection, "attend", *inputs)[1]

    @staticmethod
    def count_flops(
        count, encoder, decoder, tokens: int, features: bool, text: bool
    ) -> bool:
        """Counts projector, keys and values, and cross-attention of one connection.

        Args:
          count, encoder, decoder, tokens, features, text: see `Fusion.count_flops`.
        """
        patches, width = encoder.num_patches, decoder.width
        heads = decoder.num_heads * decoder.head_dim
        keys = 2 * decoder.num_kv_heads * decoder.head_dim  # keys and values
        block = count.trains("fusion/cross_attention")
        # Projector, keys and values: once an image.
        image = count.project(features)
        count.product("image_keys", patches, width, keys, block, image)
        # Queries of the text, and the attention, whose operands need gradients if
        # anything before them trains.
        name = "cross_attention"
        count.product(name, tokens, width, heads, block, text)
        count.attention(name, tokens, patches, heads, block or image or text)
        # The gate trains even where nothing else does, and its gradient needs this one.
        count.product(name, tokens, heads, width, block, True)
        return text or block or image


class CascadedFusion(CrossAttentionFusion):
    """Baseline "cascaded": the same blocks, all of them on one depth, the deepest."""


class PrefixFusion(Fusion):
    """Baseline "self_attention", as in LLaVA: image tokens in the text.

    Projected tokens of the deepest connected depth precede the text that sees the image,
    and pass through the whole decoder.
    """

    @staticmethod
    def image_tokens_in_text(num_patches: int) -> int:
        """Returns the number of patches: each becomes a token."""
        return num_patches

    def prepare(
        self,
        features: jax.Array,
        text: jax.Array,
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> tuple[jax.Array, jax.Array, tuple[KeyValues, ...]]:
        """Inserts the image tokens into the text; see `interleave`.

        Args:
          features, text, image_mask, layers: see `Fusion.prepare`.
        """
        # [B, P, E] of the only connection.
        (image,) = self.project(features)
        image_position, position = interleave(image_mask, image.shape[1])
        # [B, P + T, E]
        x = jnp.concatenate([image.astype(text.dtype), text], axis=1)
        # Sorting by position gives static shapes, wherever each example has its image.
        order = jnp.argsort(jnp.concatenate([image_position, position], axis=1), axis=1)
        return jnp.take_along_axis(x, order[..., None], axis=1), position, ()

    @staticmethod
    def count_flops(
        count, encoder, decoder, tokens: int, features: bool, text: bool
    ) -> bool:
        """Counts the projector; the image tokens are counted as tokens of the text.

        Args:
          count, encoder, decoder, tokens, features, text: see `Fusion.count_flops`.
        """
        count.project(features)
        return text or features or count.trains("fusion")


class NoFusion(Fusion):
    """Baseline "none": the decoder alone, without an encoder."""


FUSION_CLASSES: dict[str, type[Fusion]] = {
    "hive": CrossAttentionFusion,
    "cascaded": CascadedFusion,
    "joint": JointFusion,
    "self_attention": PrefixFusion,
    "none": NoFusion,
}


def fusion_class(name: str) -> type[Fusion]:
    """Returns the class of a fusion.

    Raises:
      ValueError: unknown fusion.
    """
    fusion_kind(name)
    return FUSION_CLASSES[name]


def interleave(image_mask: jax.Array, num_patches: int) -> tuple[jax.Array, jax.Array]:
    """Returns the positions of P image tokens and T text tokens in one sequence.

    The image follows the leading text that does not see it: with two patches `i`, text
    `a b` before and `c d` after the image, the sequence is `a b i i c d`, so the image
    is at 2 3 and the text at 0 1 4 5. An example without an image has its image tokens
    at the end, where causal attention hides them.

    Args:
      image_mask: bool[B, T], tokens that see the image; all False without an image.
      num_patches: P.

    Returns:
      Positions int32[B, P] of the image and int32[B, T] of the text.
    """
    # `has_image`, `first` and `before` are [B, 1].
    length = image_mask.shape[1]
    has_image = image_mask.any(axis=1, keepdims=True)
    first = jnp.argmax(image_mask, axis=1, keepdims=True)
    # The number of text tokens before the image.
    before = jnp.where(has_image, first, length)
    image = before + jnp.arange(num_patches)[None]
    text = jnp.arange(length)[None]
    return image, text + jnp.where(text >= before, num_patches, 0)
