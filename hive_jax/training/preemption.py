"""SIGTERM and SIGINT: exit while there is nothing to save, later stop after a save.

Imports nothing slow, so that the handlers are there before JAX is.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Self

from hive_jax.errors import PREEMPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# JAX's own handler of SIGTERM in a job of several processes, a C function.
_jax_handler = None
# Called before the process ends without leaving its context managers.
_releases = []


class ExitOnSignal:
    """Context manager that exits with code PREEMPTED on SIGTERM or SIGINT, at once.

    For the time without anything to save. The process ends as if it were killed, after
    `released_on_exit`: an exception would wait for calls into C++ (compilation, other
    processes), and is lost where it is raised in a callback.
    """

    def __enter__(self) -> Self:
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
        # Python calls handlers between instructions of the main thread only, but writes
        # to this pipe at once.
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer)
        threading.Thread(target=_exit_on_signal, args=(reader,), daemon=True).start()
        self._install()
        return self

    def __exit__(self, *unused_exception) -> None:
        _install(self._previous)
        signal.set_wakeup_fd(-1)
        os.close(self._writer)

    def joined_job(self) -> None:
        """Installs the handlers again, after JAX replaced one as it joined a job."""
        global _jax_handler
        _jax_handler = _get_native_handler(signal.SIGTERM)
        self._install()

    def _install(self) -> None:
        # Without a handler Python would not write to the pipe.
        _install(dict.fromkeys(_SIGNALS, lambda number, frame: None))


@contextlib.contextmanager
def released_on_exit(lock: contextlib.AbstractContextManager) -> Iterator[None]:
    """Context manager that enters another, which `release_locks` leaves too.

    Args:
      lock: the other context manager.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock)
        _releases.append(stack.close)
        try:
            yield
        finally:
            _releases.remove(stack.close)


def release_locks() -> None:
    """Leaves the context managers of `released_on_exit`. For a process that ends without
    leaving its own ones."""
    for release in _releases:
        release()


class StopRequest:
    """Context manager that records SIGTERM and SIGINT from `listen` on.

    Until then, and for a second signal, the previous handlers apply. In a job of
    several processes all must stop at the same step: there JAX's handler of SIGTERM
    tells the others, and they agree on one of the calls of `check`.

    Attributes:
      requested: whether to stop.
    """

    def __init__(self):
        self.requested = False
        self._num_checks = 0
        self._previous = {}
        self._wakeup = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused_exception) -> None:
        self._restore()

    def listen(self) -> None:
        """Starts to record signals."""
        import jax  # here, because importing it takes seconds

        # Python accepts signal handlers in the main thread only.
        if threading.current_thread() is not threading.main_thread():
            return
        if jax.process_count() > 1:
            if _jax_handler is not None:
                self._previous[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
                _set_native_handler(signal.SIGTERM, _jax_handler)
            return
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._record)
        # Last: a signal that arrives meanwhile still ends the process, and is not lost.
        self._wakeup = signal.set_wakeup_fd(-1)

    def check(self) -> bool:
        """Returns whether to stop, the same in all processes of a job; they must call
        it equally often."""
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() > 1 and not self.requested:
            # Counted here: several checks may belong to one step.
            self._num_checks += 1
            self.requested = multihost_utils.reached_preemption_sync_point(
                self._num_checks
            )
        return self.requested

    def _record(self, number: int, frame) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        """Installs the previous handlers."""
        _install(self._previous)
        self._previous = {}
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._wakeup = None


def _install(handlers: Mapping) -> None:
    for number, handler in handlers.items():
        # None: it was not installed from Python.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _exit_on_signal(reader: int) -> None:
    """Waits for one of the signals, and ends the process."""
    while number := os.read(reader, 1):  # empty when the pipe is closed
        if number[0] in _SIGNALS:
            release_locks()
            with contextlib.suppress(OSError):
                os.write(1, b"stopped, nothing to save; run the same command again\n")
            os._exit(PREEMPTED)
    os.close(reader)


# Python's `signal.signal` can neither return nor install a C function.
_get_native_handler = ctypes.pythonapi.PyOS_getsig
_get_native_handler.argtypes = [ctypes.c_int]
_get_native_handler.restype = ctypes.c_void_p
_set_native_handler = ctypes.pythonapi.PyOS_setsig
_set_native_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
_set_native_handler.restype = ctypes.c_void_p
