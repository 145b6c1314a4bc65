"""What decoding keeps: keys and values of what was read, a slot for each position."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class KeysValues:
    """key and value [B, S, K, H]; of a text, slot s is for the token at position s."""

    key: jax.Array
    value: jax.Array


@flax.struct.dataclass
class Memory:
    """All that a model has read of images and texts.

    Attributes:
      text: of each decoder layer.
      image: of each connection, read once; empty where the image is part of the text.
      sees_image: bool[B, 1], whether there is an image for what comes next.
    """

    text: tuple[KeysValues, ...]
    image: tuple[KeysValues, ...]
    sees_image: jax.Array


def extended(
    cache: KeysValues, key: jax.Array, value: jax.Array, position: jax.Array
) -> KeysValues:
    """The cache with key and value [B, T, K, H] in the slots `position` int32[B, T].

    A row's slots after its last token may hold anything: causal attention looks at
    them only once they have been written.
    """
    row = jnp.arange(position.shape[0])[:, None]
    return KeysValues(
        cache.key.at[row, position].set(key.astype(cache.key.dtype)),
        cache.value.at[row, position].set(value.astype(cache.value.dtype)),
    )
