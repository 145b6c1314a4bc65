"""How long the texts of a source are, before any of its images is read."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.data.ahead import in_order
from hive_jax.data.bad import BadSample
from hive_jax.data.tokenizer import Tokenizer, count_tokens, shortened

_AT_ONCE = 256  # samples that a thread takes


def all_token_counts(
    source,
    tokenizer: Tokenizer,
    num_tokens: int,
    threads: int,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Tokens of each sample, int32[len(source)], 0 of a bad one; the same in every
    process of a job, each of which reads its share of the samples.

    Args:
      source: best of text alone; no image is looked at.
      num_tokens: that texts will be cut at; of far longer ones a part is counted.
      progress: called with the number of samples that were read.
    """
    process, processes = jax.process_index(), jax.process_count()
    share = -(-len(source) // processes)
    mine = range(process * share, min((process + 1) * share, len(source)))
    counts = np.zeros(share, np.int32)

    def count(index: int) -> int:
        try:
            return count_tokens(shortened(source[index], num_tokens), tokenizer)
        except BadSample:
            return 0

    def count_some(first: int) -> list[int]:
        return [count(index) for index in mine[first : first + _AT_ONCE]]

    done = 0
    for some in in_order(count_some, range(0, len(mine), _AT_ONCE), threads):
        counts[done : done + len(some)] = some
        done += len(some)
        progress(len(some))
    if processes > 1:
        counts = multihost_utils.process_allgather(counts).ravel()
    return counts[: len(source)]
