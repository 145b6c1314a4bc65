"""SIGTERM: save at the next step, then stop."""

import signal
import threading
from typing import Self

import jax


class StopRequest:
    """Notes SIGTERM and SIGINT; a context manager. A second signal ends at once.

    With several processes nothing is noted: they must all stop at one step, so JAX
    itself takes SIGTERM and agrees on one; see Checkpoints.reached_preemption.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused_exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.requested = True
        signal.signal(number, self._previous[number] or signal.SIG_DFL)
