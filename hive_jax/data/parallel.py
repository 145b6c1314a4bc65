"""Work in threads, ahead of who needs it, with the results in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def ordered_map(function: Callable, indices: Iterable[int], threads: int) -> Iterator:
    """function(index) for each index in order, a few of them ahead in threads."""
    pool, ahead = ThreadPoolExecutor(threads), collections.deque()
    try:
        for index in indices:
            ahead.append(pool.submit(function, index))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
