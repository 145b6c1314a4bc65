"""Images with a caption each, as a model takes them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hive_jax.config import RunConfig
from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tokenizer import Tokenizer, count_tokens, encode_sample
from hive_jax.data.transforms import decode
from hive_jax.data.types import Batch, Sample, Segment
from hive_jax.errors import MissingInputError

_LONGEST = 256  # tokens of a caption; what is beyond is cut


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image and what is said of it.

    Attributes:
      image: uint8[size, size, 3] of the model's size.
      caption: without a newline at the end; empty for none.
      tags: (start, end, kind) spans of the caption, where they are known.
    """

    name: str
    image: np.ndarray
    caption: str
    tags: tuple[tuple[int, int, str], ...] = ()

    def sample(self) -> Sample:
        text = f"{self.caption.strip()}\n" if self.caption.strip() else ""
        return Sample(self.image, (Segment(text, tags=self.tags),))


def shown_file(path: str, caption: str, config: RunConfig) -> Shown:
    """An image file of any size. Raises MissingInputError, InvalidSample."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from None
    size = config.model.encoder.image_size
    image = decode(content, size, config.data.preprocessing, path)
    return Shown(Path(path).stem, image, caption)


def shown_scenes(config: RunConfig, count: int, first: int = 0) -> list[Shown]:
    """Scenes of the built-in world that no run has been trained on."""
    source = Tabletop("test", image_size=config.model.encoder.image_size)
    found = []
    for index in range(first, first + count):
        sample = source[index]
        (segment,) = sample.segments
        found.append(
            Shown(f"scene {index}", sample.image, segment.text.strip(), segment.tags)
        )
    return found


def batch_of(
    shown: Sequence[Shown], tokenizer: Tokenizer, tag_names: tuple[str, ...] = ()
) -> Batch:
    """All of them, padded to the longest caption."""
    samples = [one.sample() for one in shown]
    longest = max(count_tokens(sample, tokenizer) for sample in samples)
    rows = [
        encode_sample(sample, tokenizer, min(max(longest, 2), _LONGEST), tag_names)
        for sample in samples
    ]
    text = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return Batch(image=np.stack([one.image for one in shown]), **text)
