"""Kills the default run once a minute; what share of the undisturbed speed is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tools.fault_suite import micro_run
from tools.fault_suite.figure import Figure

_KILL_EVERY = 60  # seconds


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Trains stage 1 on the built-in dataset with and without kills.

    Args:
      count: kills at most; the run may end before.
      folder: for workdirs.
      cache: folder of compiled programs, which a first run of one step fills.
    """
    _start(folder / "first", cache, "--config.total_steps=1").communicate()
    began = time.monotonic()
    whole = _start(folder / "whole", cache)
    micro_run.finish(whole)
    undisturbed = time.monotonic() - began
    workdir, restarts, kills = folder / "killed", [], 0
    began = time.monotonic()
    while True:
        start, process = time.monotonic(), _start(workdir, cache)
        first_step = _first_step(process, workdir)
        if first_step and kills:
            restarts.append(first_step - start)
        try:
            output, _ = process.communicate(
                timeout=max(0, start + _KILL_EVERY - time.monotonic())
                if kills < count
                else None
            )
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    disturbed = time.monotonic() - began
    failures = [] if process.returncode == 0 else [output]
    # A resumed run also logs the first step after the one that it resumes from.
    different = [] if failures else micro_run.unequal(workdir, folder / "whole", True)
    if different:
        failures = [f"different {', '.join(different)}"]
    slowest = f"{max(restarts):.1f} s" if restarts else "not measured"
    seen = (
        f"a kill every {_KILL_EVERY} s: {undisturbed / disturbed:.0%} of the undisturbed "
        f"speed ({undisturbed:.0f} s without, {disturbed:.0f} s with); from a restart to "
        f"its first step {slowest}; {'equal' if not failures else 'other'} bits"
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
        [sys.executable, "-m", "hive_jax.train", *config, *overrides],
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
