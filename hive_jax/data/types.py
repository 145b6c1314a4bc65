"""The types between data and training: Sample (one, on the host) and Batch (many).

Sample   an image and the text beside it, as a dataset returns them
Batch    arrays of fixed shape, as the train step takes them
"""

import dataclasses

import flax.struct
import jax
import numpy as np

ROLES = ("system", "user", "assistant")  # of the messages of a conversation


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of text, supervised or not.

    Attributes:
      text: the text; segments are joined as they are, so it brings its own spaces.
      target: whether the loss is taken on it.
      tags: (start, end, tag) character spans of `text`; each tag is one of the
        dataset's `tag_names`.
      role: of a message, one of ROLES; its `text` is the content of the message alone.
        Empty for text that is no conversation.
    """

    text: str
    target: bool = True
    tags: tuple[tuple[int, int, str], ...] = ()
    role: str = ""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with text, e.g. a caption, or a question (no target) and its answer.

    Attributes:
      image: uint8[height, width, 3], or the bytes of an image file, or None for a
        sample without an image.
      segments: the text, in order.
      image_before: index of the segment that the image precedes; the text of earlier
        segments does not attend to it.
      label: its class, one of the dataset's `classes`; empty for none.
      awaits_answer: whether a conversation ends where an answer is to be generated.
    """

    image: np.ndarray | bytes | None
    segments: tuple[Segment, ...]
    image_before: int = 0
    label: str = ""
    awaits_answer: bool = False

    @property
    def is_conversation(self) -> bool:
        """Whether the segments are messages with roles."""
        return any(segment.role for segment in self.segments)

    def without_roles(self) -> "Sample":
        """Returns a conversation as plain text, a line a message; others unchanged."""
        if not self.is_conversation:
            return self
        lines = (Segment(one.text.strip() + "\n", one.target) for one in self.segments)
        return dataclasses.replace(self, segments=tuple(lines))


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
