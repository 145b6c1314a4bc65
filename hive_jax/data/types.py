"""The contract between data and everything else: Sample (one, host) and Batch (many).

Sample   an image and the text beside it, as a source gives them
Batch    fixed-shape arrays, as the train step takes them
"""

import dataclasses

import flax.struct
import jax
import numpy as np

# What a word is about; validation reports the loss on each kind apart.
KINDS = ("other", "colour", "shape", "material", "relation", "size", "count")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of text. The loss is taken on it if `target` is set.

    Attributes:
      text: the text, joined to its neighbours as it stands (it brings its own spaces).
      target: whether the model learns to write it.
      kinds: (start, end, kind) character spans of `text`, kind one of KINDS.
    """

    text: str
    target: bool = True
    kinds: tuple[tuple[int, int, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with text, e.g. a caption, or a question (no target) and its answer.

    Attributes:
      image: uint8[height, width, 3], or the content of an image file, or None for
        text alone.
      segments: the text, in order.
      image_before: the segment that the image stands before; text of earlier
        segments does not see it.
      label: the name of its class, one of the source's `classes`; empty for none.
    """

    image: np.ndarray | bytes | None
    segments: tuple[Segment, ...]
    image_before: int = 0
    label: str = ""


@flax.struct.dataclass
class Batch:
    """Samples as arrays of fixed shape; the same on the host and on the device.

    Position t is asked for token t + 1: `target[:, t]` says whether token t itself
    is supervised, and the first token never is.

    Attributes:
      image: uint8[B, height, width, 3]; zeros where a sample has none.
      tokens: int32[B, T], padded on the right.
      target: bool[B, T], tokens that the loss is taken on.
      image_mask: bool[B, T], positions that may look at the image.
      kind: int32[B, T], index into KINDS of each token.
    """

    image: jax.Array | np.ndarray
    tokens: jax.Array | np.ndarray
    target: jax.Array | np.ndarray
    image_mask: jax.Array | np.ndarray
    kind: jax.Array | np.ndarray

    @classmethod
    def spec(cls, batch_size: int, num_tokens: int, image_size: int) -> "Batch":
        """The shapes and dtypes of a batch, as jax.ShapeDtypeStruct."""
        text = (batch_size, num_tokens)
        return cls(
            image=jax.ShapeDtypeStruct(
                (batch_size, image_size, image_size, 3), np.uint8
            ),
            tokens=jax.ShapeDtypeStruct(text, np.int32),
            target=jax.ShapeDtypeStruct(text, np.bool_),
            image_mask=jax.ShapeDtypeStruct(text, np.bool_),
            kind=jax.ShapeDtypeStruct(text, np.int32),
        )
