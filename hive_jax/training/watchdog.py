"""Bounds every wait of a job of several processes.

A process may be killed, stop to answer, or never come to a collective operation in which
the others wait for it. All processes then exit with code 75 (PREEMPTED) and one line that
names the process, and launchers start the job again. docs/reliability.md lists the
limits. A single process has no watchdog: all functions here return at once.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.console import show_error
from hive_jax.errors import PREEMPTED, HiveError
from hive_jax.training.coordinator import Coordinator
from hive_jax.training.peer_connection import local_addresses
from hive_jax.training.peers import ERROR_GRACE_SECONDS, SILENCE_SECONDS, Worker
from hive_jax.training.phase_clock import PhaseClock
from hive_jax.training.run_timing import RunTiming, listen_to_compilations

_JOIN_SECONDS = 300
_DEVICES_SECONDS = 120

# Errors that JAX raises in the processes that a lost one leaves behind: a status of XLA,
# and what failed. On CPUs it raises some as ValueError.
_PEER_ERRORS = re.compile(
    r"(?-i:UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): |"
    r"(?-i:[A-Z_]+): .*(gloo|nccl|barrier|coordination service|connection (closed|reset))",
    re.IGNORECASE,
)

_clock = PhaseClock()
_process: Coordinator | Worker | None = None  # of a job of several

# Arguments of `jax.distributed.initialize`. JAX aborts a process that waits longer, so
# these are longer than the watchdog's own limits.
JAX_TIMEOUTS = {
    "initialization_timeout": _JOIN_SECONDS + 60,
    "heartbeat_timeout_seconds": _DEVICES_SECONDS + 60,
}


@contextlib.contextmanager
def limit_join():
    """Context manager that exits with PREEMPTED if joining a job takes too long."""
    with _limit(_JOIN_SECONDS, "not all processes of the job have started"):
        yield


def connect(coordinator_address: str | None) -> None:
    """Connects the processes of the job that this one has joined; starts the watch.

    Returns at once if this one is alone.

    Args:
      coordinator_address: "host:port" of process 0, if it was given.

    Raises:
      UnavailableError: a process cannot be reached.
    """
    global _process
    with _limit(_DEVICES_SECONDS, "not all processes have found their devices"):
        if jax.process_count() == 1:
            return
        index, host = jax.process_index(), socket.gethostname()
        record = {}
        if index == 0:
            coordinator = Coordinator(host, jax.process_count(), _clock)
            record = {
                "host": host,
                "addresses": local_addresses(coordinator_address),
                "port": coordinator.port,
                "token": coordinator.token,
            }
        record = _broadcast(record)
        if index == 0:
            coordinator.accept_all()
            _process = coordinator
        else:
            _process = Worker(index, host, _clock, record)
    # Before JAX's own, which waits for all processes: the last registered runs first.
    atexit.register(_process.finish)


@functools.cache  # JAX has no public way to remove a listener
def _time_compilations() -> None:
    listen_to_compilations(lambda *event: _clock.timing.end_compilation(*event))


def begin_timing(began: float) -> None:
    """Starts the timing of a run.

    Args:
      began: `time.monotonic()` at its start.
    """
    _time_compilations()
    _clock.timing = RunTiming(began)


def end_first_step() -> None:
    """Notes in the timing that the first step has ended."""
    _clock.timing.end_first_step()


def end_timing() -> dict:
    """Ends the current phase; returns `RunTiming.summary` of all since `begin_timing`."""
    enter("start-up")
    summary = _clock.timing.summary()
    # Of another run in this process, e.g. in a notebook.
    begin_timing(time.monotonic())
    return summary


def set_timeout(seconds: float) -> None:
    """Sets the limit of a phase; see RunConfig.hang_timeout."""
    _clock.hang_timeout = seconds


def enter(phase: str) -> None:
    """Begins a phase, which ends the one before it.

    All processes must enter the same phases: the one that has entered the fewest is the
    one that the others wait for.

    Args:
      phase: its name, in words that fit "no progress in ...".
    """
    _clock.enter(phase)


@contextlib.contextmanager
def phase(name: str):
    """Context manager of a phase within the current one, which then goes on.

    Args:
      name: as for `enter`.
    """
    outer = _clock.phase
    enter(name)
    yield
    enter(outer)


def compile_together(function: Callable) -> Callable:
    """Returns a jitted function whose first call with arguments of new shapes compiles
    it in all processes before any of them runs it.

    Collective operations on CPUs wait for 30 seconds only, and on other devices a
    compilation would count as a hang of the processes that have finished theirs.

    Args:
      function: jitted; the shapes of its last argument decide those of the others.
    """
    return _compile_together(function) if _process else function


@functools.cache  # once for each function, over all its callers
def _compile_together(function: Callable) -> Callable:
    compiled = set()

    def call(*arguments):
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[-1]))
        if shapes not in compiled:
            compiled.add(shapes)
            with phase(f"compilation {len(compiled)} of {_clock.phase}"):
                # JAX keeps the executable: the call below does not compile again.
                function.lower(*arguments).compile()
                _process.meet()
        return function(*arguments)

    return call


@contextlib.contextmanager
def end_together():
    """Context manager that ends all processes of the job if this one fails.

    They cannot continue without it. An error that a lost process has caused ends all with
    PREEMPTED, any other error with its own exit code, which launchers act on.
    """
    try:
        yield
    except Exception as error:
        if _process and (reason := _peer_error(error)):
            # The watch finds out which process it was, and ends this one meanwhile.
            time.sleep(SILENCE_SECONDS + ERROR_GRACE_SECONDS)
            _process.report_lost(f"a process of the job is lost: {reason}")
        if _process:
            _process.fail(getattr(error, "exit_code", 1))
        raise


def _peer_error(error: BaseException | None) -> str | None:
    """Returns the first line of the error of a collective operation that caused `error`,
    else None."""
    while error is not None:
        line = str(error).partition("\n")[0]
        if not isinstance(error, HiveError) and _PEER_ERRORS.match(line):
            return line[:200]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _limit(seconds: float, reason: str):
    """Context manager that exits with PREEMPTED if its body takes longer."""
    timer = threading.Timer(seconds, _exit, (f"{reason} within {seconds} s",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit(reason: str) -> None:
    show_error(f"{reason}; run the same command again")
    os._exit(PREEMPTED)


def _broadcast(record: dict) -> dict:
    """Returns the JSON object of process 0; all processes must call it."""
    content = np.zeros(4096, np.uint8)
    encoded = json.dumps(record).encode()
    content[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content))
    return json.loads(bytes(content).rstrip(b"\0"))
