"""Captioned images as inputs of an analysis."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.data.sample_encoding import count_tokens, encode_sample
from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.transforms import decode
from hive_jax.data.types import Sample, Segment
from hive_jax.io import read_bytes

_MAX_TOKENS = 256  # per caption; longer ones are truncated


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """An image and its caption.

    Attributes:
      name: name used in titles and file names.
      image: uint8[size, size, 3], in the model's image size.
      caption: text without a newline at the end; empty for none.
      tags: (start, end, tag) spans of characters in the caption, where known.
    """

    name: str
    image: np.ndarray
    caption: str
    tags: tuple[tuple[int, int, str], ...] = ()

    def sample(self) -> Sample:
        """Returns a training sample of the image and its caption."""
        # Training ends every text with a newline; see `inference.generate.END`.
        text = f"{self.caption.strip()}\n" if self.caption.strip() else ""
        return Sample(self.image, (Segment(text, tags=self.tags),))


def captioned_file(path: str, caption: str, config: RunConfig) -> CaptionedImage:
    """Loads an image file of any size, preprocessed for a model.

    Args:
      path: image file.
      caption: caption of the image; empty for none.
      config: config of the model's run.

    Raises:
      MissingInputError: the file does not exist.
      DataError: the file cannot be read, or is a folder, pipe or device.
      InvalidSample: the file is not a valid image.
    """
    content = read_bytes(path)
    size = config.model.encoder.image_size
    # As in training, with the same limits of size and memory.
    image = decode(content, size, config.data.preprocessing, path)
    return CaptionedImage(Path(path).stem, image, caption)


def captioned_scenes(
    config: RunConfig, count: int, first: int = 0
) -> list[CaptionedImage]:
    """Renders captioned scenes of the test split of the built-in tabletop dataset.

    Args:
      config: config of the run, which defines the image size.
      count: number of scenes.
      first: index of the first scene in the split.
    """
    source = Tabletop("test", image_size=config.model.encoder.image_size)
    scenes = []
    for index in range(first, first + count):
        sample = source[index]
        # A caption is a single segment; a question and its answer would be two.
        (segment,) = sample.segments
        scenes.append(
            CaptionedImage(
                f"scene {index}", sample.image, segment.text.strip(), segment.tags
            )
        )
    return scenes


def make_batch(
    examples: Sequence[CaptionedImage],
    tokenizer: Tokenizer,
    tag_names: tuple[str, ...] = (),
) -> Batch:
    """Batches examples, padded to the longest caption.

    Args:
      examples: images, all of one size, with captions.
      tokenizer: tokenizer of the model.
      tag_names: names of the token tags to encode; empty for a batch without tags.
    """
    samples = [example.sample() for example in examples]
    longest = max(count_tokens(sample, tokenizer) for sample in samples)
    rows = [
        # At least 2: with a single token there is nothing to predict.
        encode_sample(sample, tokenizer, min(max(longest, 2), _MAX_TOKENS), tag_names)
        for sample in samples
    ]
    text = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return Batch(image=np.stack([example.image for example in examples]), **text)
