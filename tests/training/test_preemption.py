"""Signals: exit while there is nothing to save, in Python and inside of C calls."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hive_jax.errors import PREEMPTED
from hive_jax.training.preemption import ExitOnSignal, StopRequest
from tools.fault_suite import micro_run
from tools.fault_suite.sigterm import handles_sigterm

WAIT = """
import contextlib, ctypes, sys, time
from hive_jax.training.preemption import ExitOnSignal, released_on_exit

assert "jax" not in sys.modules

@contextlib.contextmanager
def lock():
    try:
        yield
    finally:
        print("released", flush=True)

with ExitOnSignal(), released_on_exit(lock()):
    print("ready", flush=True)
    if sys.argv[1] == "python":
        time.sleep(60)
    # A C function that no signal interrupts: to lock a locked mutex.
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
MESSAGE = "stopped, nothing to save; run the same command again\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["python", "c"])
def test_exit_while_there_is_nothing_to_save(where, number):
    command = [sys.executable, "-c", WAIT, where]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == PREEMPTED
    assert output == f"released\n{MESSAGE}"


def test_signals_are_recorded_from_listen_on():
    before = signal.getsignal(signal.SIGTERM)
    with ExitOnSignal(), StopRequest() as stop:
        exits, pipe = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(pipe)
        assert not stop.check()
        stop.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and stop.check()
        # A second one exits.
        assert signal.getsignal(signal.SIGTERM) == exits
        assert signal.set_wakeup_fd(pipe) == pipe
    assert signal.getsignal(signal.SIGTERM) == before


def test_train_handles_sigterm_before_it_imports_jax(tmp_path):
    check = "import sys, hive_jax.train; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
    arguments = micro_run.command("stage1.py", tmp_path / "run")
    process = micro_run.start(arguments, tmp_path / "cache")
    while not handles_sigterm(process):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == PREEMPTED, output
    assert output == MESSAGE
    assert not (tmp_path / "run").exists()
