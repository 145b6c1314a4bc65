"""Kills the default run once a minute; what share of the undisturbed speed is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tools.fault_suite import micro_run
from tools.fault_suite.figure import Figure

_KILL_EVERY = 60  # seconds
_GOAL = 0.9  # of the undisturbed speed
_STEPS_PER_KILL = 240  # about a minute of the default run on two CPU cores
# A save every few seconds.
_OPTIONS = ("--config.checkpoint_every=20", "--config.log_every=5")


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Trains stage 1 on the built-in dataset, for longer, with and without kills.

    Args:
      count: kills, about: the length of the run. It is killed until its end.
      folder: for workdirs.
      cache: folder of compiled programs, which a first run of one step fills.
    """
    steps = f"--config.total_steps={_STEPS_PER_KILL * count}"
    _start(folder / "first", cache, "--config.total_steps=1").communicate()
    began = time.monotonic()
    micro_run.finish(_start(folder / "whole", cache, steps))
    undisturbed = time.monotonic() - began
    workdir, restarts, kills = folder / "killed", [], 0
    began = time.monotonic()
    # A run that no longer advances is not killed for ever.
    while kills < 4 * count:
        start, process = time.monotonic(), _start(workdir, cache, steps)
        first_step = _first_step(process, workdir)
        if first_step and kills:
            restarts.append(first_step - start)
        try:
            remaining = start + _KILL_EVERY - time.monotonic()
            output, _ = process.communicate(timeout=max(0, remaining))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    else:
        output = f"still not at its end after {kills} kills"
    disturbed = time.monotonic() - began
    failures = [] if process.returncode == 0 else [output]
    # A resumed run also logs the first step after the one that it resumes from.
    different = [] if failures else micro_run.unequal(workdir, folder / "whole", True)
    if different:
        failures = [f"different {', '.join(different)}"]
    bits, share = "other" if failures else "equal", undisturbed / disturbed
    if share < _GOAL or not kills:
        failures.append(f"{kills} kills, {share:.0%}; expected {_GOAL:.0%} or more")
    slowest = f"{max(restarts):.1f} s" if restarts else "not measured"
    seen = (
        f"{kills} kills, one every {_KILL_EVERY} s, a save every 20 steps: {share:.0%} of "
        f"the undisturbed speed ({undisturbed:.0f} s without, {disturbed:.0f} s with); from a "
        f"restart to its first logged steps {slowest}; {bits} bits"
    )
    return Figure(kills, seen, failures)


def _start(workdir: Path, cache: Path, *overrides: str) -> subprocess.Popen:
    """Starts the default run, as fast as it can compute."""
    config = ("--config", "configs/stage1.py", "--workdir", str(workdir))
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "hive_jax.train", *config, *_OPTIONS, *overrides],
        cwd=micro_run.ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _first_step(process: subprocess.Popen, workdir: Path) -> float | None:
    """Returns the time at which a started run has logged a new step; None if it does
    not."""
    log = workdir / "metrics.jsonl"
    # A resumed run writes the file anew, without the steps that it will repeat.
    old = log.stat().st_ino if log.exists() else None
    if not micro_run.wait_until(
        lambda: log.exists() and log.stat().st_ino != old, process
    ):
        return None
    lines = micro_run.num_logged(workdir) if old else 0
    if not micro_run.wait_until(lambda: micro_run.num_logged(workdir) > lines, process):
        return None
    return time.monotonic()
