"""Fusion "joint": image and text in one softmax of the connected layers' own attention.

The fusion of the authors' code (github.com/eugenelet/HIVE). In a connected layer, text
attends to [text before the image, image, text after it]:

  * The layer's input norm is applied to the projected features, and their keys and values
    are made by the layer's own projections, or by others that start from them.
  * Patches have rotary positions, and the text after the image follows on them.
  * RMSNorms of the connection are applied to queries and keys after the rotation.

An example without an image has exactly the plain layer.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.models import layer_stack
from hive_jax.models.attention import KeyValues
from hive_jax.models.attention_rows import attend_by_rows, rows_to_heads
from hive_jax.models.config import DecoderConfig
from hive_jax.models.decoder_block import (
    KeyValueProjection,
    SelfAttention,
    decoder_norm,
    rotate_in_layer,
)
from hive_jax.models.fusion_base import Fusion, text_position
from hive_jax.models.norms import RMSNorm
from hive_jax.models.placement import apply_block
from hive_jax.models.rotary import grid_positions


@flax.struct.dataclass
class JointImage:
    """Images as the connected layers attend to them.

    Attributes:
      key_values: keys and values [B, P, K, H] of each connection, after rotation and norm.
      start: int32[B, 1], the number of text tokens before the image.
    """

    key_values: tuple[KeyValues, ...]
    start: jax.Array


class ConnectionParameters(nn.Module):
    """The parameters of a connection; created here, and applied by the classes below.

    Attributes:
      config: architecture of the decoder.
      own_kv: projections to keys and values of the image.
    """

    config: DecoderConfig
    own_kv: bool

    @nn.compact
    def __call__(self, x: jax.Array, head: jax.Array) -> None:
        for name in ("query_norm", "key_norm"):
            _connection_norm(self.config, name=name)(head)
        if self.own_kv:
            KeyValueProjection(self.config, name="kv")(x)


class ImageKeyValues(nn.Module):
    """Keys and values of projected features in a connected layer, [B, P, E].

    Its parameters are those of the layer and of the connection together.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, projected: jax.Array, position: jax.Array, is_sliding: jax.Array
    ) -> KeyValues:
        c = self.config
        x = decoder_norm(c, "pre_attention_norm")(projected)
        key, value = KeyValueProjection(c, name="kv")(x)
        if c.qk_norm:
            key = decoder_norm(c, "layer_key_norm")(key)
        key = rotate_in_layer(c, key, position, is_sliding)
        return KeyValues(_connection_norm(c, name="key_norm")(key), value)


class JointFusion(Fusion):
    """The image's keys and values join those of the text in the connected layers."""

    extends_attention = True
    uses_layer_params = True
    exact_gelu = True

    def setup(self):
        super().setup()
        c = self.config
        # Features and heads of length 1: parameters do not depend on lengths.
        example = jnp.zeros((1, 1, c.width)), jnp.zeros((1, 1, 1, c.head_dim))
        block = ConnectionParameters(c, self.image_kv == "own", parent=None)
        init = layer_stack.stacked_init(block, len(self.connections), *example)
        self.joint_attention = layer_stack.stacked_params(self, "joint_attention", init)
        self.blocks = layer_stack.unstack(self.joint_attention)

    def prepare(
        self,
        features: jax.Array,
        text: jax.Array,
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> tuple[jax.Array, jax.Array, JointImage]:
        """Computes the keys and values of each connection; returns the text unchanged.

        Args:
          features, text, image_mask, layers: see `Fusion.prepare`.
        """
        start = jnp.argmax(image_mask, axis=1, keepdims=True)
        grid = self._grid(features.shape[2])
        # [B, P, H / 2]
        position = start[..., None] + grid[None]
        module, key_values = ImageKeyValues(self.config, parent=None), []
        for number, projected in enumerate(self.project(features)):
            params = _image_params(self.blocks[number], layers[number])
            inputs = projected, position, self._is_sliding(number)
            key_values.append(apply_block(module, self.placement, params, *inputs))
        return text, text_position(text), JointImage(tuple(key_values), start)

    def before_layer(
        self,
        connection: int,
        x: jax.Array,
        image_kv: JointImage,
        image_mask: jax.Array,
    ) -> tuple[jax.Array, Callable]:
        """Returns the attention to text and image.

        Args:
          connection, x, image_kv, image_mask: see `Fusion.before_layer`.
        """
        weighted = self._attention(connection, image_kv, image_mask)

        def attention(*inputs, **options) -> jax.Array:
            return weighted(*inputs, **options)[0]

        return x, attention

    def attention_weights(
        self,
        connection: int,
        x: jax.Array,
        image_kv: JointImage,
        image_mask: jax.Array,
        layers: Sequence[dict] = (),
    ) -> jax.Array:
        """Computes the weights of the patches in the joint softmax, float32[B, N, T, P].

        Args:
          connection, x, image_kv, image_mask, layers: see `Fusion.attention_weights`.
        """
        weighted, found = self._attention(connection, image_kv, image_mask), []

        def attention(*inputs, **options) -> jax.Array:
            out, weights = weighted(*inputs, **options)
            found.append(weights)
            return out

        c, layer = self.config, layers[connection]
        norm = {"params": layer["pre_attention_norm"]}
        x = RMSNorm(c.norm_offset, c.norm_eps, parent=None).apply(norm, x)
        inputs = x, self._is_sliding(connection), None, None, attention
        SelfAttention(c, parent=None).apply({"params": layer["attn"]}, *inputs)
        return found[0]

    def _is_sliding(self, connection: int) -> np.bool_:
        return self.config.is_sliding()[self.connections[connection][1] - 1]

    def _grid(self, num_patches: int) -> np.ndarray:
        half = self.config.head_dim // 2
        if self.image_rope:
            return grid_positions(math.isqrt(num_patches), half)
        return np.broadcast_to(np.arange(num_patches)[:, None], (num_patches, half))

    def _attention(
        self, connection: int, image: JointImage, image_mask: jax.Array
    ) -> Callable:
        """Returns a function with the arguments of `attention.attend` that returns the
        output and the weights of the patches."""
        # No method of a module is called inside: it is traced within the decoder's.
        c, is_sliding = self.config, self._is_sliding(connection)
        image_kv, norms = image.key_values[connection], self.blocks[connection]
        num_patches = image_kv.key.shape[1]
        shift = math.isqrt(num_patches) if self.image_rope else num_patches
        has_image = image_mask.any(axis=1, keepdims=True)

        def follow_image(x: jax.Array, after: jax.Array, name: str) -> jax.Array:
            # Rotations add up, so that cached keys can be as the plain layer has them.
            y = rotate_in_layer(c, x, jnp.where(after, shift, 0), is_sliding)
            y = _connection_norm(c, parent=None).apply({"params": norms[name]}, y)
            return jnp.where(has_image[..., None, None], y, x)

        def attention(query, key, value, mask, *, scale, softcap):
            # Tokens after the image: those from the first that sees it on. In decoding
            # image_mask is [B, 1], of tokens that all come after it.
            after = jnp.cumsum(image_mask, axis=1) > 0
            # Slots of a cache are positions in the text.
            slot = jnp.arange(key.shape[1])[None]
            key_after = has_image & (slot >= image.start)
            return attend_jointly(
                follow_image(query, after, "query_norm"),
                KeyValues(follow_image(key, key_after, "key_norm"), value),
                mask,
                image_kv,
                image_mask,
                scale=scale,
                softcap=softcap,
            )

        return attention

    @staticmethod
    def count_flops(
        count, encoder, decoder, tokens: int, features: bool, text: bool
    ) -> bool:
        """Counts projector, keys and values, and attention to the patches.

        Args:
          count, encoder, decoder, tokens, features, text: see `Fusion.count_flops`.
        """
        patches, heads = encoder.num_patches, decoder.num_heads * decoder.head_dim
        keys = 2 * decoder.num_kv_heads * decoder.head_dim  # keys and values
        own = count.model.image_kv == "own"
        weights = count.trains(
            "fusion/joint_attention/kv" if own else "llm/layers/attn"
        )
        image = count.project(features)
        count.product("image_keys", patches, decoder.width, keys, weights, image)
        # The operands need gradients, as the norms of queries and keys train.
        norms = count.trains("fusion/joint_attention")
        trains = norms or weights or image or text
        count.attention("cross_attention", tokens, patches, heads, trains)
        return trains


def attend_jointly(
    query_BTNH: jax.Array,
    text: KeyValues,
    text_mask_BTS: jax.Array,
    image: KeyValues,
    image_mask_BT: jax.Array,
    *,
    scale: float,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes attention to text and image in one softmax.

    A query that does not see the image gets the bits of `attend` to the text. Keys are
    not concatenated, which would copy them at every step of decoding: text and image have
    a softmax each, and the image's share is that of its sum of exponentials.

    Args:
      query_BTNH: as for `attention_with_weights`.
      text: keys and values [B, S, K, H].
      text_mask_BTS: bool, True where a query may attend; each query to one key at least.
      image: keys and values [B, P, K, H].
      image_mask_BT: bool, whether a query attends to all patches or to none; or [B, 1].
      scale, softcap: as for `attention_with_weights`.

    Returns:
      The output [B, T, N, H], and the weights of the patches float32[B, N, T, P].
    """
    by_text, by_image = (
        attend_by_rows(query_BTNH, keys.key, keys.value, mask, scale, softcap)
        for keys, mask in ((text, text_mask_BTS), (image, None))
    )
    batch, num_queries, heads, _ = shape = query_BTNH.shape
    # [B, T] -> [B, 1, R, 1]: rows are ordered by head, then by query.
    sees = jnp.broadcast_to(image_mask_BT, (batch, num_queries))
    sees = jnp.tile(sees, heads // text.key.shape[2])[:, None, :, None]
    difference = by_image.log_total() - by_text.log_total()
    share = jnp.where(sees, jax.nn.sigmoid(difference), 0.0)
    out, read = by_text.out / by_text.total, by_image.out / by_image.total
    out = jnp.where(sees, out + share * (read - out), out)
    weights = by_image.weights_by_head(shape)
    weights = weights * share.reshape(batch, heads, num_queries, 1)
    return rows_to_heads(out.astype(text.value.dtype), shape), weights


def _connection_norm(c: DecoderConfig, **options) -> RMSNorm:
    # Gemma's offset for every decoder family: these norms belong to no checkpoint.
    return RMSNorm(eps=c.norm_eps, **options)


def _image_params(connection: dict, layer: dict) -> dict:
    """Returns the parameters of ImageKeyValues, of a connection and its layer."""
    attention = layer["attn"]
    kv = {name: leaf for name, leaf in attention.items() if name.startswith("kv_")}
    params = {
        "pre_attention_norm": layer["pre_attention_norm"],
        "kv": connection.get("kv", kv),
        "key_norm": connection["key_norm"],
    }
    if "key_norm" in attention:
        params["layer_key_norm"] = attention["key_norm"]
    return params
