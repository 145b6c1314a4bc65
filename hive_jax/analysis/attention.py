"""Attention weights of the words of a caption (paper, figures 12 to 14)."""

import dataclasses
import functools
import re

import jax
import numpy as np

from hive_jax.analysis.examples import CaptionedImage, make_batch
from hive_jax.analysis.gradients import require_image_reader
from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.errors import ConfigError
from hive_jax.models.hive import Hive
from hive_jax.training.objectives import normalize_images


@dataclasses.dataclass(frozen=True)
class WordAttention:
    """The words of a caption and their attention to the image.

    Attributes:
      words: words in the order of the caption, without punctuation.
      weights: attention weights float32[M, heads, words, P] of each connection, from
        early to deep, averaged over the positions that predict the word's tokens.
      layers: decoder layer of each connection.
      depths: encoder depth of each connection.
    """

    words: tuple[str, ...]
    weights: np.ndarray
    layers: tuple[int, ...]
    depths: tuple[int, ...]


def attention_maps(
    config: RunConfig,
    params: dict,
    tokenizer: Tokenizer,
    examples: list[CaptionedImage],
) -> list[WordAttention]:
    """Computes the attention weights of each caption's words.

    The weights of a word are averaged over the positions that predict its tokens: the
    model attends to the image there to choose the word, one position before the token.

    Args:
      config: config of the run.
      params: nested dict of its parameters.
      tokenizer: tokenizer of the run.
      examples: images with non-empty captions.

    Returns:
      The words of each caption with their attention weights.

    Raises:
      ConfigError: the model has no cross-attention, or a caption has no word.
    """
    model = require_image_reader(config)
    if not config.model.fusion_kind.has_attention_weights:
        raise ConfigError(
            f"{config.name} has no cross-attention to draw: its fusion is "
            f"{config.model.fusion!r}, whose image tokens stand in the text"
        )
    if not all(example.caption.strip() for example in examples):
        raise ConfigError("a caption is empty; expected words to draw the attention of")
    # One batch for all captions: compiled once.
    batch = make_batch(examples, tokenizer)
    # float32[M, B, N, T, P]
    weights = np.asarray(_maps(model, params, batch))
    pairs = config.model.resolved_connections()
    attentions = []
    for row, example in enumerate(examples):
        words = word_positions(
            example.caption.strip(), tokenizer, batch.tokens.shape[1]
        )
        # A list index beside the integer `row` moves the positions to axis 0:
        # [positions, M, N, P], averaged to [M, N, P].
        word_weights = [
            weights[:, row, :, positions].mean(axis=0) for positions in words.values()
        ]
        attentions.append(
            WordAttention(
                tuple(word for word, _ in words),
                # [M, N, words, P]
                np.stack(word_weights, axis=2),
                tuple(layer for _, layer in pairs),
                tuple(depth for depth, _ in pairs),
            )
        )
    return attentions


@functools.partial(jax.jit, static_argnums=0)
def _maps(model: Hive, params: dict, batch: Batch) -> jax.Array:
    images = normalize_images(batch.image)
    inputs = images, batch.tokens, batch.image_mask
    return model.apply({"params": params}, *inputs, method="attention_weights")


def word_positions(
    caption: str, tokenizer: Tokenizer, length: int
) -> dict[tuple[str, int], list[int]]:
    """Finds the positions that predict the tokens of each word of a caption.

    Args:
      caption: text without a newline at the end.
      tokenizer: tokenizer of the run.
      length: number of tokens of the padded sequence; words beyond it are omitted.

    Returns:
      (word, index of its first character) -> positions, in the order of the caption.
    """
    # The newline ends the text in training and may change the last tokens.
    _, spans = tokenizer.encode(f"{caption}\n")
    # Token `number` is at position number + first, and predicted one before it.
    first = 0 if tokenizer.bos_id is None else 1
    by_word = {}
    for match in re.finditer(r"[\w'-]+", caption):
        positions = [
            max(number + first - 1, 0)
            for number, (start, end) in enumerate(spans)
            # A token may span several words, or a part of one: any overlap counts.
            if start < match.end() and end > match.start() and number + first < length
        ]
        if positions:
            by_word[match[0], match.start()] = positions
    return by_word
