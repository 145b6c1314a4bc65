"""Batch: arrays of fixed shape, as the train step takes them."""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Batch:
    """Samples as arrays of fixed shape, on the host or on the device.

    The logits at position t predict token t + 1; `target[:, t]` says whether token t
    itself is supervised, which the first token never is.

    Attributes:
      image: uint8[B, height, width, 3]; zeros where a sample has none.
      tokens: int32[B, T], padded on the right.
      target: bool[B, T], tokens that the loss is taken on.
      image_mask: bool[B, T], positions that attend to the image.
      tag: int32[B, T], index into the dataset's `tag_names` of each token; None where
        it has none, and in training.
    """

    image: jax.Array | np.ndarray
    tokens: jax.Array | np.ndarray
    target: jax.Array | np.ndarray
    image_mask: jax.Array | np.ndarray
    tag: jax.Array | np.ndarray | None = None

    @classmethod
    def spec(
        cls,
        batch_size: int,
        num_tokens: int,
        image_size: int,
        *,
        has_tags: bool = False,
    ) -> "Batch":
        """The shapes and dtypes of a batch, as jax.ShapeDtypeStruct.

        Args:
          batch_size: B.
          num_tokens: T.
          image_size: height and width, in pixels.
          has_tags: whether it carries `tag`.
        """
        text = (batch_size, num_tokens)
        return cls(
            image=jax.ShapeDtypeStruct(
                (batch_size, image_size, image_size, 3), np.uint8
            ),
            tokens=jax.ShapeDtypeStruct(text, np.int32),
            target=jax.ShapeDtypeStruct(text, np.bool_),
            image_mask=jax.ShapeDtypeStruct(text, np.bool_),
            tag=jax.ShapeDtypeStruct(text, np.int32) if has_tags else None,
        )
