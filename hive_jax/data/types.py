"""Sample: an image and the text beside it, as a dataset returns them."""

import dataclasses

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
