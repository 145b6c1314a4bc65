"""Where the words of a caption look (paper, figures 12 to 14)."""

import dataclasses
import functools
import re

import jax
import numpy as np

from hive_jax.analysis.gradients import require_reader
from hive_jax.analysis.shown import Shown, batch_of
from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.types import Batch
from hive_jax.errors import ConfigError
from hive_jax.models.hive import Hive
from hive_jax.training.objectives import normalize_images


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a caption and where they look.

    Attributes:
      words: as they stand, without punctuation.
      shares: float32[M, heads, words, P], of each connection, from early to deep; a
        word's is the mean over the positions that write its tokens.
      layers: the decoder layer of each connection.
      depths: the encoder depth that each reads.
    """

    words: tuple[str, ...]
    shares: np.ndarray
    layers: tuple[int, ...]
    depths: tuple[int, ...]


def attention_maps(
    config: RunConfig, params: dict, tokenizer: Tokenizer, shown: list[Shown]
) -> list[Words]:
    """For each image the attention of its caption's words.

    A word is written at the positions before its tokens: where the model looks there is
    what it looks at in order to say it.

    Raises:
      ConfigError: the model has no cross-attention, or a caption has no word.
    """
    model = require_reader(config)
    if not config.model.fusion_class.has_attention_weights:
        raise ConfigError(
            f"{config.name} has no cross-attention to draw: its fusion is "
            f"{config.model.fusion!r}, whose image tokens stand in the text"
        )
    if not all(one.caption.strip() for one in shown):
        raise ConfigError("an empty caption: there is no word to draw attention of")
    batch = batch_of(shown, tokenizer)
    shares = np.asarray(_maps(model, params, batch))
    pairs = config.model.resolved_connections()
    found = []
    for row, one in enumerate(shown):
        words = word_positions(one.caption.strip(), tokenizer, batch.tokens.shape[1])
        at = [shares[:, row, :, places].mean(axis=0) for places in words.values()]
        found.append(
            Words(
                tuple(word for word, _ in words),
                np.stack(at, axis=2),
                tuple(layer for _, layer in pairs),
                tuple(depth for depth, _ in pairs),
            )
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _maps(model: Hive, params: dict, batch: Batch) -> jax.Array:
    images = normalize_images(batch.image)
    inputs = images, batch.tokens, batch.image_mask
    return model.apply({"params": params}, *inputs, method="attention_weights")


def word_positions(
    caption: str, tokenizer: Tokenizer, length: int
) -> dict[tuple[str, int], list[int]]:
    """(word, where it begins) -> the positions that its tokens are written at; words
    beyond `length` tokens are left out."""
    _, spans = tokenizer.encode(f"{caption}\n")
    first = 0 if tokenizer.bos_id is None else 1
    found = {}
    for match in re.finditer(r"[\w'-]+", caption):
        places = [
            max(number + first - 1, 0)
            for number, (start, end) in enumerate(spans)
            if start < match.end() and end > match.start() and number + first < length
        ]
        if places:
            found[match[0], match.start()] = places
    return found
