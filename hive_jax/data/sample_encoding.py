"""Samples as token arrays.

Labels come from the character span of each token in the whole text; no part of it is
tokenised on its own, so no template or merge can shift them.
"""

import dataclasses

import numpy as np

from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.types import Sample

# Text beyond these is not tokenised: far more characters than tokens have on average,
# and at least a few pages.
_CHARACTERS, _CHARACTERS_PER_TOKEN = 2**16, 256


def encode_sample(
    sample: Sample,
    tokenizer: Tokenizer,
    num_tokens: int,
    tag_names: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Returns the text arrays of one sample, each [num_tokens]; see Batch.

    A begin-of-sequence token comes first where the vocabulary has one. An image before
    the first segment precedes everything, this token included, as in PaliGemma.

    Args:
      sample: the sample.
      tokenizer: for its text.
      num_tokens: T; longer text is truncated, shorter text padded.
      tag_names: of the dataset, for the array "tag"; empty to leave it out.
    """
    sample = truncate_text(sample, num_tokens)
    # All segments at once: tokens may cross their borders, as in the text of a model.
    text = "".join(segment.text for segment in sample.segments)
    ids, spans = tokenizer.encode(text)
    target, image_mask = _label_characters(sample)
    tags = _tag_characters(sample, tag_names) if tag_names else None
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    limit = num_tokens - len(prefix)
    ids, spans = ids[:limit], spans[:limit]

    row = {
        "tokens": np.full(num_tokens, tokenizer.pad_id, np.int32),
        "target": np.zeros(num_tokens, bool),
        "image_mask": np.zeros(num_tokens, bool),
    }
    if tags is not None:
        row["tag"] = np.zeros(num_tokens, np.int32)
    row["tokens"][: len(prefix) + len(ids)] = prefix + ids
    if sample.image is not None:
        row["image_mask"][: len(prefix)] = sample.image_before == 0
    for position, (start, end) in enumerate(spans, start=len(prefix)):
        # A token has the labels of its last character. One without a character of its
        # own (SentencePiece's bytes but the last of a character) has those of the next.
        last = min(max(end - 1, start), len(text) - 1)
        row["target"][position] = target[last] and position > 0
        row["image_mask"][position] = image_mask[last]
        if tags is not None:
            # Of any of its characters: a token may begin with a space, which has no tag.
            row["tag"][position] = tags[min(start, last) : last + 1].max()
    return row


def count_tokens(sample: Sample, tokenizer: Tokenizer) -> int:
    """Returns the length of a sample's text in tokens, before any truncation.

    Args:
      sample: its segments are joined before they are tokenised.
      tokenizer: adds the begin-of-sequence token, if it has one, to the count.
    """
    text = "".join(segment.text for segment in sample.segments)
    return len(tokenizer.encode(text)[0]) + (tokenizer.bos_id is not None)


def truncate_text(sample: Sample, num_tokens: int) -> Sample:
    """Drops text far beyond `num_tokens`, so that tokenising a text of any length takes
    bounded time.

    Args:
      sample: returned as it is, if there is no such text.
      num_tokens: of a sample in training.
    """
    limit = max_characters(num_tokens)
    if sum(len(segment.text) for segment in sample.segments) <= limit:
        return sample
    segments = []
    for segment in sample.segments:
        text = segment.text[:limit]
        segments.append(dataclasses.replace(segment, text=text))
        limit -= len(text)
    return dataclasses.replace(sample, segments=tuple(segments))


def max_characters(num_tokens: int) -> int:
    """Returns the length at which text of `num_tokens` tokens is cut before tokenizing."""
    return max(_CHARACTERS, num_tokens * _CHARACTERS_PER_TOKEN)


def _label_characters(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """For each character: whether it is a target, and whether it sees the image."""
    target, image_mask = [], []
    for number, segment in enumerate(sample.segments):
        size = len(segment.text)
        target.append(np.full(size, segment.target))
        sees = sample.image is not None and number >= sample.image_before
        image_mask.append(np.full(size, sees))
    return np.concatenate(target), np.concatenate(image_mask)


def _tag_characters(sample: Sample, tag_names: tuple[str, ...]) -> np.ndarray:
    """For each character the index of its tag; 0 for none."""
    tags = []
    for segment in sample.segments:
        tags.append(np.zeros(len(segment.text), np.int32))
        for start, end, name in segment.tags:
            tags[-1][start:end] = tag_names.index(name)
    return np.concatenate(tags)
