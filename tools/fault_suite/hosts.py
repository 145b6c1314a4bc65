"""Lets one process of a job be killed, stop or sleep; the others must end and name it."""

import subprocess
import time
from collections import Counter
from pathlib import Path

from tools.fault_suite import micro_run
from tools.fault_suite.figure import Figure, format_counts

PROCESSES = 3
_LIMIT_SECONDS = 30
_OPTIONS = (
    micro_run.ALL_TRAIN,
    "--config.eval_every=4",
    "--config.checkpoint_every=3",
    "--config.log_every=1",
    "--config.mesh.data=1",
    f"--config.mesh.fsdp={PROCESSES}",
    "--config.batch_size=12",
    "--config.data.augment=True",
)
_STEPS_PER_CASE = 20
# Phase -> how often it is entered before the fault: the first two of each phase may take
# 20 minutes, so a sleep counts as a hang from the third on.
_PHASES = {
    "the train step": 5,
    "the save": 2,
    "a validation batch": 2,
    "waiting for data": 5,
    "start-up": 0,
}
_FAULTS = ("SIGKILL", "SIGSTOP", "asleep")
# Before its first phase a process may sleep for 20 minutes.
CASES = [
    (phase, fault, victim)
    for victim in (PROCESSES - 1, 0)
    for fault in _FAULTS
    for phase in _PHASES
    if (phase, fault) != ("start-up", "asleep")
]

# hive_jax.train with a fault as it enters a phase for the last time of `times`.
_VICTIM = """
import os, signal, sys, time

phase, times, fault, *arguments = sys.argv[1:]

from hive_jax.train import main
from hive_jax.training import watchdog

entered, enter, connect = [], watchdog.enter, watchdog.connect


def fail():
    print("FAULT", flush=True)
    if fault != "asleep":
        os.kill(os.getpid(), getattr(signal, fault))
    time.sleep(1000)


def enter_and_fail(name):
    enter(name)
    entered.append(name)
    if entered.count(phase) > int(times):
        fail()


def connect_and_fail(address):
    connect(address)
    if phase == "start-up":
        fail()


watchdog.enter, watchdog.connect = enter_and_fail, connect_and_fail
sys.exit(main(arguments))
"""


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Disturbs a job that is started again after each fault, and compares its end.

    Args:
      count: faults; after all of `CASES` they repeat.
      folder: for workdirs.
      cache: folder of compiled programs.
    """
    total_steps = 20 + _STEPS_PER_CASE * count
    undisturbed, workdir = folder / "undisturbed", folder / "disturbed"
    micro_run.finish_all(_start(undisturbed, cache, total_steps), 3600)
    # Few cases are of every kind, too.
    cases = CASES[:: max(1, len(CASES) // count)] * (count // len(CASES) + 1)
    slowest, failures, faults = 0.0, [], Counter()
    for phase, fault, victim in cases[:count]:
        processes = _start(workdir, cache, total_steps, victim, phase, fault)
        seconds, problem = _end(processes, victim, fault)
        slowest = max(slowest, seconds)
        faults[fault] += 1
        if problem:
            failures.append(f"{fault} of process {victim} in {phase}: {problem}")
    micro_run.finish_all(_start(workdir, cache, total_steps), 3600)
    if different := micro_run.unequal(workdir, undisturbed):
        failures.append(f"different {', '.join(different)} at the end")
    seen = (
        f"{PROCESSES} processes; {format_counts(faults)}; all had ended after "
        f"{slowest:.1f} s at most; {count - len(failures)} named, with code 75; "
        f"{'other' if different else 'equal'} bits at the end"
    )
    return Figure(count, seen, failures)


def _start(
    workdir: Path,
    cache: Path,
    total_steps: int,
    victim: int = -1,
    phase: str = "",
    fault: str = "",
) -> list[subprocess.Popen]:
    """Starts all processes of the job, one of them with a fault."""
    port, processes = micro_run.free_port(), []
    options = (*_OPTIONS, f"--config.total_steps={total_steps}")
    for index in range(PROCESSES):
        command = micro_run.command("stage1.py", workdir, *options)
        command = micro_run.joined(command, index, port, PROCESSES)
        if index == victim:
            python, _, _, *arguments = command  # python -m hive_jax.train
            fault_arguments = (phase, str(_PHASES[phase]), fault)
            command = [python, "-c", _VICTIM, *fault_arguments, *arguments]
        processes.append(micro_run.start(command, cache))
    return processes


def _end(
    processes: list[subprocess.Popen], victim: int, fault: str
) -> tuple[float, str]:
    """Waits for the fault and all ends; returns the seconds between, and what was
    wrong."""
    try:
        lines = []
        for line in processes[victim].stdout:
            lines.append(line)
            if line == "FAULT\n":
                break
        else:
            return 0.0, "no fault: " + "".join(lines)
        began, outputs = time.monotonic(), []
        for process in processes:
            outputs.append(process.communicate(timeout=300)[0])
        seconds = time.monotonic() - began
    except subprocess.TimeoutExpired:
        return 300.0, "still running after 300 s"
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    expected = [75] * PROCESSES
    # A stopped process is killed by its guard; one asleep ends itself.
    expected[victim] = 75 if fault == "asleep" else -9
    others = [outputs[i] for i in range(PROCESSES) if i != victim]
    if codes != expected:
        return seconds, f"exit codes {codes}: " + "\n".join(others)
    if seconds > _LIMIT_SECONDS:
        return seconds, f"ended after {seconds:.1f} s"
    if not any(f"process {victim} (" in output for output in others):
        return seconds, "not named: " + "\n".join(others)
    return seconds, ""
