"""Ordered thread-pool map with bounded prefetch."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    prefetch: int | None = None,
) -> Iterator[Result]:
    """Yields function(item) for each item in order, computed ahead in threads.

    Closing the iterator, or an error in `function`, cancels what has not begun.

    Args:
      function: called in a thread.
      items: read lazily, in the caller's thread.
      threads: number of threads.
      prefetch: calls in flight, or done and not yet yielded; None for two a thread.
    """
    prefetch = 2 * threads if prefetch is None else prefetch
    pool, pending = ThreadPoolExecutor(threads), collections.deque()
    try:
        # One `submit` for each result taken, so that `prefetch` bounds the memory of an
        # endless `items`.
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Waits for the calls in flight: their threads may hold files and memory.
        pool.shutdown(cancel_futures=True)
