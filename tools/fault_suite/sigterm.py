"""Sends SIGTERM at any moment to one process or to one of two: saves, ends with 75."""

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from tools.fault_suite import micro_run
from tools.fault_suite.figure import Figure, format_counts

_LIMIT_SECONDS = 10
_STEPS = ("--config.total_steps=100000", "--config.checkpoint_every=100000")
_OPTIONS = {
    "start-up": _STEPS,
    "training": _STEPS,
    # After each step a validation that takes minutes.
    "validation": (
        *("--config.total_steps=100000", "--config.eval_every=1"),
        "--config.data.validation_size=80000",
    ),
    "start-up of two": (*_STEPS, *micro_run.MESH),
    "training of two": (*_STEPS, *micro_run.MESH),
}
# Moments in turn; two processes take more time.
_MOMENTS = (
    *("training", "start-up", "validation", "training of two", "training"),
    *("start-up", "validation", "start-up of two", "training", "start-up"),
)
_START_UP_SECONDS = 5


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Stops runs that are continued by the next start; arguments as for all figures."""
    draw = random.Random(0)
    moments, failures, slowest = Counter(), [], 0.0
    for number in range(count):
        moment = _MOMENTS[number % len(_MOMENTS)]
        # Moments of one kind of run share a workdir: each start resumes it.
        kind = moment.replace("start-up", "training").replace(" ", "_")
        workdir = folder / kind
        seconds, problem = _stop(workdir, moment, cache, draw)
        slowest = max(slowest, seconds)
        moments[f"in the {moment}"] += 1
        if problem:
            failures.append(f"case {number}, {moment}: {problem}")
    failures += _different_losses(folder, cache)
    seen = (
        f"{format_counts(moments)}; all ended with 75 after {slowest:.1f} s at most, "
        f"saved at the last logged step; losses as undisturbed"
        if not failures
        else f"{len(failures)} failed"
    )
    return Figure(count, seen, failures)


def handles_sigterm(process: subprocess.Popen) -> bool:
    """Returns whether a process has installed a handler of SIGTERM."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> signal.SIGTERM - 1 & 1)


def _stop(
    workdir: Path, moment: str, cache: Path, draw: random.Random
) -> tuple[float, str]:
    """Returns the seconds that a stop took, and what was wrong; empty if nothing."""
    arguments = micro_run.command(
        "stage1.py", workdir, "--config.log_every=1", *_OPTIONS[moment]
    )
    if moment.endswith("of two"):
        port = micro_run.free_port()
        jobs = [micro_run.joined(arguments, index, port) for index in (0, 1)]
        processes = [micro_run.start(job, cache, devices=2) for job in jobs]
    else:
        processes = [micro_run.start(arguments, cache)]
    try:
        if not all(_wait(process, workdir, moment) for process in processes):
            return 0.0, "did not start: " + processes[0].communicate()[0]
        in_start_up = moment.startswith("start-up")
        time.sleep(draw.uniform(0, _START_UP_SECONDS if in_start_up else 1))
        # In their start-up the processes do not tell each other of it.
        signalled = processes if in_start_up else [draw.choice(processes)]
        began = time.monotonic()
        for process in signalled:
            process.send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        seconds = time.monotonic() - began
    except subprocess.TimeoutExpired:
        return 120.0, "still running after 120 s"
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    if set(codes) != {75}:
        return seconds, f"exit codes {codes}: " + "\n".join(outputs)
    if seconds > _LIMIT_SECONDS:
        return seconds, f"ended after {seconds:.1f} s"
    return seconds, _lost_steps(workdir)


def _wait(process: subprocess.Popen, workdir: Path, moment: str) -> bool:
    """Waits until a process is in its start-up, or has logged a step."""
    if moment.startswith("start-up"):
        return micro_run.wait_until(lambda: handles_sigterm(process), process)
    logged = micro_run.num_logged(workdir)
    return micro_run.wait_until(lambda: micro_run.num_logged(workdir) > logged, process)


def _lost_steps(workdir: Path) -> str:
    """Returns a description of logged steps that are not saved; empty if there are
    none."""
    logged = max(micro_run.losses(workdir), default=0) if _has_log(workdir) else 0
    saved = max(micro_run.steps(workdir), default=0)
    return f"saved step {saved} of {logged}" if saved != logged else ""


def _has_log(workdir: Path) -> bool:
    return (workdir / "metrics.jsonl").exists()


def _different_losses(folder: Path, cache: Path) -> list[str]:
    """Compares the losses of the stopped run of one process with an undisturbed one's."""
    stopped = (
        micro_run.losses(folder / "training") if _has_log(folder / "training") else {}
    )
    workdir, last = folder / "undisturbed", max(stopped, default=0)
    if not last:
        return []
    options = ("--config.log_every=1", *_OPTIONS["training"])
    process = micro_run.start(micro_run.command("stage1.py", workdir, *options), cache)
    # More lines than steps, for validations have lines too.
    lines = last + last // 50 + 2
    micro_run.wait_until(lambda: micro_run.num_logged(workdir) >= lines, process, 3600)
    process.kill()
    process.communicate()
    expected = micro_run.losses(workdir)
    different = [step for step in stopped if stopped[step] != expected.get(step)]
    return [f"other losses at the steps {different}"] if different else []
