"""Processes of a job that watch each other over TCP, and end together.

Each process has a connection to process 0 and sends a heartbeat each second from a
thread of its own. JAX has heartbeats as well, but no public function to read them, or
to send a message: it aborts the others with a C++ stack and the exit code of a crash,
which no launcher takes for a reason to restart.
"""

import abc
import contextlib
import os
import threading
import time
from collections.abc import Callable

from hive_jax.console import show_error
from hive_jax.errors import PREEMPTED
from hive_jax.training import process_guard
from hive_jax.training.peer_connection import Connection, connect
from hive_jax.training.phase_clock import PhaseClock

HEARTBEAT_SECONDS = 1
# More than a heartbeat is late on a host that swaps, or whose Python thread holds the
# interpreter's lock in a long call.
SILENCE_SECONDS = 15
# Most errors (bad data, a loss that is not finite) reach all processes. Each of them
# prints its own message before the first one ends the others.
ERROR_GRACE_SECONDS = 5


class Process(abc.ABC):
    """This process of the job; a subclass passes its reports to process 0.

    Args:
      name: "process N (host)".
      clock: of the phases of this process.
    """

    def __init__(self, name: str, clock: PhaseClock):
        self.name = name
        self._clock = clock
        self._exit_code = None  # of an error that this process prints itself
        self._is_finished = self._is_ending = False
        self._meetings = self._met = 0
        self._changed = threading.Condition()

    @abc.abstractmethod
    def report(self, **message) -> None:
        """Passes a message to process 0."""

    def meet(self) -> None:
        """Returns once every process has called it as often as this one."""
        self._meetings += 1
        self.report(meet=True)
        with self._changed:
            self._changed.wait_for(lambda: self._met >= self._meetings)

    def fail(self, code: int) -> None:
        """Ends all processes with the exit code of an error of this one."""
        if not self._is_ending:  # else that is the reason of the error
            self._exit_code = code
            self.report(failed=code)

    def report_lost(self, reason: str) -> None:
        """Ends all processes, which cannot go on for a reason that names nobody."""
        self.report(lost=reason)
        time.sleep(ERROR_GRACE_SECONDS)  # process 0 ends this one before that
        self.exit(reason, PREEMPTED)

    def finish(self) -> None:
        """Ends the watch over this process, which is about to exit."""
        self._is_finished = True
        self._guard.stdin.close()
        if self._exit_code is None:
            self.report(finished=True)

    def start_watch(self) -> None:
        """Starts to send heartbeats, to the guard of this process and to process 0."""
        self._guard = process_guard.start(SILENCE_SECONDS + ERROR_GRACE_SECONDS)
        start_thread(self._watch)

    def _watch(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            with contextlib.suppress(OSError, ValueError):  # ValueError: closed
                self._guard.stdin.write(b".")
            progress = self._clock.progress()
            if self._is_finished:
                progress["overdue"] = None
            self.report(**progress)

    def all_met(self) -> None:
        """Lets `meet` return, once for each of its calls."""
        with self._changed:
            self._met += 1
            self._changed.notify_all()

    def exit(self, reason: str, code: int) -> None:
        """Ends this process at once: its main thread may never return, and JAX aborts a
        process milliseconds after process 0 has been killed."""
        if self._exit_code is None:
            advice = "; the same command resumes the run"
            show_error(reason + (advice if code == PREEMPTED else ""))
        os._exit(code if self._exit_code is None else self._exit_code)


class Worker(Process):
    """Any other process.

    Args:
      index: index of this process.
      host: name of this host.
      clock: of the phases of this process.
      coordinator: record of process 0: host, addresses, port and token.

    Raises:
      UnavailableError: process 0 cannot be reached at any of its addresses.
    """

    def __init__(self, index: int, host: str, clock: PhaseClock, coordinator: dict):
        super().__init__(f"process {index} ({host})", clock)
        self._coordinator = f"process 0 ({coordinator['host']})"
        self._connection = Connection(connect(coordinator), SILENCE_SECONDS)
        self.report(token=coordinator["token"], index=index, name=self.name)
        start_thread(self._listen)
        self.start_watch()

    def report(self, **message) -> None:
        """Sends a message to process 0."""
        self._connection.send(**message)

    def _listen(self) -> None:
        reason = self._connection.listen(self._handle)
        if not self._is_finished:
            self.exit(f"{self._coordinator} is lost: {reason}", PREEMPTED)

    def _handle(self, message: dict) -> None:
        if "met" in message:
            self.all_met()
        if "end" in message:
            self.exit(message["end"], message["code"])


def start_thread(function: Callable, *arguments) -> threading.Thread:
    """Starts and returns a thread that does not keep the process alive."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
