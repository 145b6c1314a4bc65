"""How long the texts of a source are, before any of its images is read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.data.bad import BadSample
from hive_jax.data.tokenizer import Tokenizer, count_tokens

_AT_ONCE = 256  # samples that a thread takes


def all_token_counts(
    source, tokenizer: Tokenizer, threads: int, progress: Callable[[int], None]
) -> np.ndarray:
    """Tokens of each sample, int32[len(source)], 0 of a bad one; the same in every
    process of a job, each of which reads its share of the samples.

    Args:
      source: best of text alone; no image is looked at.
      progress: called with the number of samples that were read.
    """
    process, processes = jax.process_index(), jax.process_count()
    share = -(-len(source) // processes)
    mine = range(process * share, min((process + 1) * share, len(source)))
    counts = np.zeros(share, np.int32)
    counts[: len(mine)] = _token_counts(source, tokenizer, mine, threads, progress)
    if processes > 1:
        counts = multihost_utils.process_allgather(counts).ravel()
    return counts[: len(source)]


def _token_counts(
    source,
    tokenizer: Tokenizer,
    indices: range,
    threads: int,
    progress: Callable[[int], None],
) -> list[int]:
    def count(index: int) -> int:
        try:
            return count_tokens(source[index], tokenizer)
        except BadSample:
            return 0

    def count_some(first: int) -> list[int]:
        return [count(index) for index in indices[first : first + _AT_ONCE]]

    counts = []
    with ThreadPoolExecutor(threads) as pool:
        for some in pool.map(count_some, range(0, len(indices), _AT_ONCE)):
            counts += some
            progress(len(some))
    return counts
