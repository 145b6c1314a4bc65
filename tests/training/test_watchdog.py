"""Jobs of two processes of which one fails, is killed, stops or sleeps."""

import re
import signal
import sys
import time

import jax
import pytest

from hive_jax.errors import DataError, OutputError
from hive_jax.training import phase_clock, watchdog
from tools.fault_suite.micro_run import free_port, start

# A training loop without a model; it starts faster than the real one.
JOB = """
import sys, time

from hive_jax import errors
from hive_jax.training import peers, runtime, watchdog

address, process, victim, fault = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
peers.SILENCE_SECONDS, peers.ERROR_GRACE_SECONDS = 3, 2
runtime.join_job("on", address, 2, process)
watchdog.connect(address)
watchdog.set_timeout(3 if fault in ("asleep", "slow") else 60)

import jax
from jax.experimental import multihost_utils

multihost_utils.sync_global_devices("met")
print("ready", flush=True)
with watchdog.end_together():
    for step in range(40 if fault == "slow" else 10**9):
        if step == 20:
            watchdog.enter("the first save")
            if process == victim and fault == "slow":
                time.sleep(6)
        watchdog.enter("the step")
        if process == victim and step == 20:
            if fault == "asleep":
                time.sleep(1000)
            if fault == "error":
                raise errors.DataError("bad samples")
        time.sleep(0.02)
        watchdog.enter("the collective")
        multihost_utils.sync_global_devices("step")
"""


JAX_LOG = re.compile(r"[EFIW]\d{4} |Additional GRPC error|:UNKNOWN:|.*Gloo")


def run_job(tmp_path, fault, victim):
    """Returns (exit code, seconds until it, output) of both processes."""
    address = f"localhost:{free_port()}"
    code = [sys.executable, "-c", JOB, address]
    processes = [start([*code, str(i), str(victim), fault], tmp_path) for i in (0, 1)]
    try:
        for process in processes:
            while process.stdout.readline() not in ("ready\n", ""):
                pass
        time.sleep(0.5)
        began = time.monotonic()
        if fault in ("SIGKILL", "SIGSTOP"):
            processes[victim].send_signal(getattr(signal, fault))
        rows = []
        # The other one first: the seconds are its own.
        for i in (1 - victim, victim):
            output = processes[i].communicate(timeout=60)[0]
            rows.append((processes[i].returncode, time.monotonic() - began, output))
    finally:
        for process in processes:
            process.kill()
    return rows


@pytest.mark.parametrize(
    ("fault", "victim", "message"),
    [
        ("SIGKILL", 0, "is lost: its connection has closed"),
        ("SIGKILL", 1, "is lost: its connection has closed"),
        ("SIGSTOP", 0, "is lost: it has not answered for 3 s"),
        ("SIGSTOP", 1, "is lost: it has not answered for 3 s"),
        ("asleep", 1, "is stuck: no progress in the step for "),
    ],
)
def test_a_lost_or_stuck_process_ends_the_job_with_75(tmp_path, fault, victim, message):
    (code, seconds, output), (victims_code, _, victims_output) = run_job(
        tmp_path, fault, victim
    )
    assert code == 75, output
    assert seconds < 12, output
    # One line, which names the process and its host: no traceback, no C++ stack. JAX
    # logs more if it sees the end of process 0 first.
    (line,) = [line for line in output.splitlines() if not JAX_LOG.match(line)]
    assert line.startswith("error: ") and f"process {victim} (" in line, output
    assert message in line and "the same command resumes the run" in line
    # A stopped process is killed by its guard; one asleep ends itself.
    assert victims_code == (75 if fault == "asleep" else -9), victims_output


def test_an_error_of_one_process_ends_both_with_its_code(tmp_path):
    """Not 75, and not the higher code that Slurm would take: a restart cannot help."""
    (code, _, output), (victims_code, _, victims_output) = run_job(tmp_path, "error", 1)
    assert [code, victims_code] == [65, 65], output + victims_output
    assert "process 1 (" in output and "has ended with exit code 65" in output
    assert "has ended" not in victims_output and "bad samples" in victims_output


def test_those_who_wait_for_a_slow_process_do_not_end_the_job(tmp_path):
    """Its first save may take long; they wait for it in a phase that may not."""
    for code, seconds, output in run_job(tmp_path, "slow", 1):
        assert code == 0 and seconds > 5, output


def test_limits_follow_the_durations_of_the_phases(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(phase_clock.time, "monotonic", lambda: now[0])
    clock = phase_clock.PhaseClock()

    def take(phase, seconds):
        clock.enter(phase)
        now[0] += seconds
        return clock.progress()

    # The first two of a phase are generous: 60 times 20 s.
    assert take("the step", 300)["overdue"] is None
    assert take("the step", 1200)["overdue"] is None
    now[0] += 1
    overdue = "no progress in the step for 1201 s (config.hang_timeout)"
    assert clock.progress() == {"count": 2, "phase": "the step", "overdue": overdue}
    # Fast ones are limited by hang_timeout, whatever the first took.
    for seconds in (300, 1, 6, 20):
        assert take("the save", seconds)["overdue"] is None
    now[0] += 1
    assert "the save for 21 s" in clock.progress()["overdue"]
    # Slow ones by three times the longest.
    for seconds in (1, 40, 120):
        assert take("a validation batch", seconds)["overdue"] is None
    now[0] += 1
    assert "a validation batch for 121 s" in clock.progress()["overdue"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed", True),
        ("UNAVAILABLE: failed to connect", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", False),
    ],
)
def test_errors_of_lost_processes_are_known_through_others(text, expected):
    try:
        try:
            raise jax.errors.JaxRuntimeError(text)
        except jax.errors.JaxRuntimeError as error:
            raise OutputError("saves have failed") from error
    except OutputError as error:
        assert watchdog._peer_error(error) == (text if expected else None)
    assert watchdog._peer_error(ValueError("UNKNOWN: Gloo AllGather failed"))
    assert watchdog._peer_error(ValueError("the connection closed")) is None
    assert watchdog._peer_error(DataError("UNAVAILABLE: no image")) is None


def test_a_single_process_is_not_watched():
    def function():
        pass

    watchdog.connect(None)
    assert watchdog.compile_together(function) is function
