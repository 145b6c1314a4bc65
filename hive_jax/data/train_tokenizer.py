"""Trains a tokenizer on text, for own base models."""

import collections
from collections.abc import Callable, Iterable

from hive_jax.data.invalid import InvalidSample, format_counts
from hive_jax.data.sources.base import DataSource
from hive_jax.errors import DataError

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # Gemma's order
MIN_VOCAB_SIZE = 256 + len(_SPECIAL)


def train_tokenizer(texts: Iterable[str], vocab_size: int):
    """Returns a byte-level BPE, a `tokenizers.Tokenizer` that can encode any text.

    Args:
      texts: to learn the merges from.
      vocab_size: most tokens, MIN_VOCAB_SIZE or more; few texts have fewer.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    # Without the prefix, which decoding would not remove: texts survive unchanged.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL],
        # All bytes, also those that the texts do not have, so that no text is unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_texts(
    source: DataSource, progress: Callable[[], object]
) -> tuple[list[str], collections.Counter]:
    """Reads the texts of a dataset.

    Args:
      source: the dataset.
      progress: called after each sample.

    Returns:
      The text of each usable sample, and reason -> number of the unusable ones.

    Raises:
      DataError: no sample is usable.
    """
    texts, bad = [], collections.Counter()
    for index in range(len(source)):
        try:
            sample = source[index].without_roles()
            texts.append("".join(segment.text for segment in sample.segments))
        except InvalidSample as error:
            bad[error.reason] += 1
        progress()
    if not texts:
        raise DataError(f"no sample has a usable text: {format_counts(bad)}")
    return texts, bad
