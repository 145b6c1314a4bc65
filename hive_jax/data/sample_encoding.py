"""Samples as token arrays.

Labels come from the character span of each token in the whole text; no part of it is
tokenised on its own, so no template or merge can shift them.
"""

import dataclasses
from collections.abc import Sequence

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

    A conversation is written by the tokenizer's chat template; without one its messages
    are lines. Other texts, and these lines, come after a begin-of-sequence token where
    the vocabulary has one. An image before the first segment precedes everything, this
    token included, as in PaliGemma.

    Args:
      sample: the sample.
      tokenizer: for its text.
      num_tokens: T; longer text is truncated, shorter text padded.
      tag_names: of the dataset, for the array "tag"; empty to leave it out.

    Raises:
      ChatTemplateError: the chat template cannot write the conversation.
    """
    text = _tokenize(truncate_text(sample, num_tokens), tokenizer)
    prefix, target, image_mask = text.prefix, text.target, text.image_mask
    tags = _tag_characters(sample, text, tag_names) if tag_names else None
    limit = num_tokens - len(prefix)
    ids, spans = text.ids[:limit], text.spans[:limit]

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
        last = min(max(end - 1, start), len(target) - 1)
        row["target"][position] = target[last] and position > 0
        row["image_mask"][position] = image_mask[last]
        if tags is not None:
            # Of any of its characters: a token may begin with a space, which has no tag.
            row["tag"][position] = tags[min(start, last) : last + 1].max()
    return row


def count_tokens(sample: Sample, tokenizer: Tokenizer) -> int:
    """Returns the length of a sample's text in tokens, before any truncation.

    Args:
      sample: as for `encode_sample`.
      tokenizer: its begin-of-sequence token counts, if the text has it.

    Raises:
      ChatTemplateError: the chat template cannot write the conversation.
    """
    text = _tokenize(sample, tokenizer)
    return len(text.prefix) + len(text.ids)


def truncate_text(sample: Sample, num_tokens: int) -> Sample:
    """Drops text far beyond `num_tokens`, so that tokenising a text of any length takes
    bounded time.

    Args:
      sample: returned as it is, if there is no such text.
      num_tokens: of a sample in training.
    """
    # A message has a token at least, and templates are rendered for each.
    count = num_tokens if sample.is_conversation else len(sample.segments)
    limit, given = max_characters(num_tokens), sample.segments[:count]
    is_short = sum(len(segment.text) for segment in given) <= limit
    if is_short and len(given) == len(sample.segments):
        return sample
    segments = []
    for segment in given:
        text = segment.text[:limit]
        segments.append(dataclasses.replace(segment, text=text))
        limit -= len(text)
    return dataclasses.replace(sample, segments=tuple(segments))


def max_characters(num_tokens: int) -> int:
    """Returns the length at which text of `num_tokens` tokens is cut before tokenizing."""
    return max(_CHARACTERS, num_tokens * _CHARACTERS_PER_TOKEN)


@dataclasses.dataclass(frozen=True)
class _Text:
    """The text of a sample in tokens.

    Attributes:
      prefix: ids of tokens before the text.
      ids, spans: of the text; see `Tokenizer.encode`.
      target: bool[C], characters that are supervised.
      image_mask: bool[C], characters that see the image.
    """

    prefix: list[int]
    ids: list[int]
    spans: Sequence[tuple[int, int]]
    target: np.ndarray
    image_mask: np.ndarray


def _tokenize(sample: Sample, tokenizer: Tokenizer) -> _Text:
    if sample.is_conversation and tokenizer.chat_format is not None:
        return _tokenize_chat(sample, tokenizer)
    sample = sample.without_roles()
    # All segments at once: tokens may cross their borders, as in the text of a model.
    ids, spans = tokenizer.encode("".join(segment.text for segment in sample.segments))
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return _Text(prefix, ids, spans, *_label_characters(sample))


def _tokenize_chat(sample: Sample, tokenizer: Tokenizer) -> _Text:
    chat = tokenizer.chat_format.render(sample)
    ids, spans = tokenizer.encode_rendered(chat.text, chat.literal)
    target = np.zeros(len(chat.text), bool)
    for start, end in chat.answers:
        target[start:end] = True
    sees = np.arange(len(chat.text)) >= chat.image_start
    # The template writes the begin-of-sequence token itself, if it has one.
    return _Text([], ids, spans, target, sees & (sample.image is not None))


def _label_characters(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """For each character: whether it is a target, and whether it sees the image."""
    target, image_mask = [], []
    for number, segment in enumerate(sample.segments):
        size = len(segment.text)
        target.append(np.full(size, segment.target))
        sees = sample.image is not None and number >= sample.image_before
        image_mask.append(np.full(size, sees))
    return np.concatenate(target), np.concatenate(image_mask)


def _tag_characters(
    sample: Sample, text: _Text, tag_names: tuple[str, ...]
) -> np.ndarray:
    """For each character the index of its tag; 0 for none."""
    tags, first = np.zeros(len(text.target), np.int32), 0
    for segment in sample.segments:
        for start, end, name in segment.tags:
            tags[first + start : first + end] = tag_names.index(name)
        first += len(segment.text)
    return tags
