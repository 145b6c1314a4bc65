"""SIGTERM: save at the next step, then stop."""

import signal
import threading


class StopRequest:
    """Notes SIGTERM and SIGINT; a context manager. A second signal ends at once.

    Once `jax.distributed` is initialised, JAX itself takes SIGTERM and tells all
    processes of one step to stop at; see Checkpoints.reached_preemption.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused_exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.requested = True
        signal.signal(number, self._previous[number] or signal.SIG_DFL)
