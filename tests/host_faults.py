"""Lets one of two processes sleep, stop or be killed in a phase of the training, and
measures the seconds until both have ended.

    python tests/host_faults.py

Prints a line for each phase and fault, with the exit codes and the message of the process
that was not disturbed. `hang_timeout` has its default.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distributed_grid
import kill_loop

# Phase, how often it is entered before, index of the process with the fault.
PHASES = (
    ("the train step", 5, 0),
    ("the save", 2, 1),
    ("the start of the validation", 0, 1),
    ("a validation batch", 2, 1),
)
FAULTS = ("asleep", "SIGKILL", "SIGSTOP")
OPTIONS = (
    "--config.total_steps=3000",
    "--config.eval_every=4",
    "--config.checkpoint_every=3",
    "--config.log_every=1",
    *distributed_grid.MESH,
)

# hive_jax.train with a fault when it enters a phase for the last time of `times`.
VICTIM = """
import os, signal, sys, time

phase, times, fault, *arguments = sys.argv[1:]

from hive_jax.train import main
from hive_jax.training import watchdog

entered, enter = [], watchdog.enter


def enter_and_fail(name):
    enter(name)
    entered.append(name)
    if entered.count(phase) > int(times):
        print("FAULT", flush=True)
        if fault != "asleep":
            os.kill(os.getpid(), getattr(signal, fault))
        time.sleep(1000)


watchdog.enter = enter_and_fail
sys.exit(main(arguments))
"""


def start(folder: Path, fault: tuple, victim: int) -> list[subprocess.Popen]:
    """Starts a job of two processes, one of which has a fault: (phase, times, kind)."""
    port, processes = distributed_grid.free_port(), []
    for index in (0, 1):
        command = kill_loop.command("stage1.py", folder / "run", *OPTIONS)
        command = distributed_grid.joined(command, index, port)
        if index == victim:
            python, _, _, *arguments = command  # python -m hive_jax.train
            command = [python, "-c", VICTIM, *map(str, fault), *arguments]
        cache = folder.parent / "cache"
        processes.append(distributed_grid.start(command, cache, devices=2))
    return processes


def measure(folder: Path, phase: str, times: int, victim: int, fault: str) -> str:
    """Returns in a line how both processes ended."""
    processes = start(folder, (phase, times, fault), victim)
    try:
        while processes[victim].stdout.readline() not in ("FAULT\n", ""):
            pass
        began, ends = time.monotonic(), {}
        output = processes[1 - victim].communicate(timeout=300)[0]
        ends[1 - victim] = time.monotonic() - began
        processes[victim].communicate(timeout=300)
        ends[victim] = time.monotonic() - began
    finally:
        for process in processes:
            process.kill()
    lines = [line for line in output.splitlines() if line.startswith("error")]
    ended = ", ".join(
        f"process {index} after {ends[index]:.1f} s with {processes[index].returncode}"
        for index in (0, 1)
    )
    return f"{phase}, {fault} of process {victim}: {ended}: {' '.join(lines)}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for phase, times, victim in PHASES:
            for fault in FAULTS:
                case = Path(folder, f"{phase} {fault}")
                print(measure(case, phase, times, victim, fault), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(kill_loop.ROOT))
    main()
