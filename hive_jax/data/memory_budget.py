"""A limit of memory that threads share."""

import contextlib
import threading
from collections.abc import Iterator


class MemoryBudget:
    """An amount of memory that threads share.

    Args:
      total: limit of all concurrent reservations together.
    """

    def __init__(self, total: int):
        self._left = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Waits until the amount is free, and frees it again at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                # All: what one thread frees may be enough for several small images.
                self._changed.notify_all()
