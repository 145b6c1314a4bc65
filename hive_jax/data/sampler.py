"""The order of samples in a run, a function of the seed and the position alone.

Sample number p of the whole run is element p of an endless sequence of epochs, each with
every sample once in an order of its own. Batches are cut from it one after the other,
some of them across the end of an epoch.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.data.chat_template import ChatTemplateError
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sample_encoding import count_tokens, truncate_text
from hive_jax.data.sources.base import DataSource
from hive_jax.data.tokenizer import Tokenizer

# Samples per thread task: a task for each would cost more than the count.
_CHUNK = 256


class ShuffledSampler:
    """Endless epochs over the samples of a split.

    Args:
      size: samples of the split.
      seed: of the shuffles; None keeps the order of the dataset.
    """

    def __init__(self, size: int, seed: int | None = None):
        self.size, self.seed = size, seed
        # Prefetch reads ahead into the next epoch, so two are needed at a time.
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def index(self, position: int) -> int:
        """Returns the index of the sample at a position of the run."""
        epoch, row = divmod(position, self.size)
        return row if self.seed is None else int(self._epoch(epoch)[row])

    def padded_length(self, position: int, num_tokens: int) -> int:
        """Returns the padded length of the batch at a position, in tokens.

        Args:
          position: of any sample of the batch in the run.
          num_tokens: length that longer texts are truncated to.
        """
        return num_tokens

    def _permutation(self, epoch: int) -> np.ndarray:
        return self._rng(epoch).permutation(self.size)

    def _rng(self, epoch: int) -> np.random.Generator:
        # A sequence, not a sum: epoch 1 of seed 0 is another order than epoch 0 of seed 1.
        return np.random.default_rng([self.seed, epoch])


class LengthBucketSampler(ShuffledSampler):
    """Length bucketing: batches of similar lengths, in random order.

    The shuffled samples of an epoch are sorted by the bucket that holds their text, cut
    into batches, and the batches shuffled. Every other epoch is sorted in descending
    order, so that the batch across the end of an epoch has similar lengths as well.

    Args:
      tokens: int[size], the length of each sample's text.
      seed: of the shuffles.
      batch_size: samples of an optimizer step, which are padded alike.
      buckets: increasing numbers of tokens to pad to; texts longer than the last are
        padded, or cut, to the most that a batch has.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        seed: int,
        *,
        batch_size: int,
        buckets: Sequence[int],
    ):
        super().__init__(len(tokens), seed)
        self._batch_size, self._buckets = batch_size, tuple(buckets)
        # One byte a sample: hundreds of millions stay in memory in each process.
        self._bucket = np.searchsorted(buckets, tokens).astype(np.uint8)

    def padded_length(self, position: int, num_tokens: int) -> int:
        """Returns the bucket of the longest text in the batch, in tokens.

        Args:
          position: of any sample of the batch in the run.
          num_tokens: length where a text is longer than the last bucket.
        """
        first = position - position % self._batch_size
        batch = [self.index(first + row) for row in range(self._batch_size)]
        return (*self._buckets, num_tokens)[self._bucket[batch].max()]

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = self._rng(epoch)
        order = rng.permutation(self.size)
        # Stable: within a bucket the order is still that of the shuffle.
        order = order[np.argsort(self._bucket[order], kind="stable")]
        # Odd epochs descend, so that the batch across two epochs has similar lengths.
        if epoch % 2:
            order = order[::-1]
        # The batch that began in the epoch before takes its last rows from this one.
        begins = min(-epoch * self.size % self._batch_size, self.size)
        count = (self.size - begins) // self._batch_size
        ends = begins + count * self._batch_size
        whole = order[begins:ends].reshape(count, self._batch_size)
        return np.concatenate(
            [order[:begins], rng.permutation(whole).ravel(), order[ends:]]
        )


def count_all_tokens(
    source: DataSource,
    tokenizer: Tokenizer,
    num_tokens: int,
    threads: int,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Counts the tokens of each sample's text.

    Each process of a job reads its share of the samples, and all return the same
    counts.

    Args:
      source: the dataset, best opened without images, which are not used.
      tokenizer: for its text.
      num_tokens: length that texts will be truncated to; far longer ones are counted
        only in part.
      threads: number of reading threads.
      progress: called with the number of samples read since the last call.

    Returns:
      int32[len(source)], in tokens; 0 for an invalid sample.
    """
    process, processes = jax.process_index(), jax.process_count()
    # Rounded up, for process_allgather takes equal shapes; the excess is cut at the end.
    share = -(-len(source) // processes)
    mine = range(process * share, min((process + 1) * share, len(source)))
    counts = np.zeros(share, np.int32)

    def count(index: int) -> int:
        try:
            return count_tokens(truncate_text(source[index], num_tokens), tokenizer)
        except (InvalidSample, ChatTemplateError):
            return 0

    def count_chunk(first: int) -> list[int]:
        return [count(index) for index in mine[first : first + _CHUNK]]

    done = 0
    for chunk in ordered_map(count_chunk, range(0, len(mine), _CHUNK), threads):
        counts[done : done + len(chunk)] = chunk
        done += len(chunk)
        progress(len(chunk))
    if processes > 1:
        counts = multihost_utils.process_allgather(counts).ravel()
    return counts[: len(source)]
