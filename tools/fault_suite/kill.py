"""Kills runs of all three stages again and again; their ends must have equal bits."""

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

from tools.fault_suite import micro_run
from tools.fault_suite.figure import Figure, format_counts

_CHECKPOINT_EVERY = 5
_OPTIONS = (
    f"--config.checkpoint_every={_CHECKPOINT_EVERY}",
    "--config.eval_every=20",
    "--config.log_every=1",
    "--config.data.augment=True",
    "--config.data.buckets=(16,)",
    "--config.data.source=tabletop,take=first:400",
)
# Of the kills of stages 2 and 3: while the stage before is read.
_HAND_OVER_SHARE = 0.15
# Until a kill at a random moment, counted from the start; and before the first step.
_LONGEST_SECONDS, _HAND_OVER_SECONDS = 9, 5


def measure(
    count: int, folder: Path, cache: Path, stages: tuple[int, ...] = (1, 2, 3)
) -> Figure:
    """Trains undisturbed, and with SIGKILLs of which half hit a save.

    Args:
      count: kills, over all stages.
      folder: for workdirs.
      cache: folder of compiled programs.
      stages: to train, one after the other.
    """
    draw = random.Random(0)
    moments, failures = Counter(), []
    for position, stage in enumerate(stages):
        kills = count // len(stages) + (position < count % len(stages))
        total_steps = 40 + 2 * _CHECKPOINT_EVERY * kills
        workdirs = [folder / name / f"stage{stage}" for name in ("whole", "killed")]
        commands = [
            _command(workdir, stage, total_steps, first=position == 0)
            for workdir in workdirs
        ]
        micro_run.finish(micro_run.start(commands[0], cache))
        for number in range(kills):
            hand_over = position > 0 and number < max(1, _HAND_OVER_SHARE * kills)
            process = micro_run.start(commands[1], cache)
            moment = _kill(process, workdirs[1], number, hand_over, draw)
            if moment is None:
                failures.append(f"stage {stage}: ended before kill {number}")
                break
            moments[moment] += 1
        micro_run.finish(micro_run.start(commands[1], cache))
        different = micro_run.unequal(*workdirs)
        if different:
            failures.append(f"stage {stage}: different {', '.join(different)}")
        if leftovers := micro_run.unfinished_saves(workdirs[1]):
            failures.append(f"stage {stage}: left behind {leftovers}")
    seen = (
        f"{format_counts(dict(sorted(moments.items())))}; stages {', '.join(map(str, stages))}: "
        f"{len(failures)} differences of losses, results or fingerprints"
    )
    return Figure(moments.total(), seen, failures)


def _command(workdir: Path, stage: int, total_steps: int, first: bool) -> list[str]:
    previous = (
        () if first else (f"--config.init={workdir.parent / f'stage{stage - 1}'}",)
    )
    options = (*_OPTIONS, f"--config.total_steps={total_steps}", *previous)
    return micro_run.command(f"stage{stage}.py", workdir, *options)


def _kill(
    process: subprocess.Popen,
    workdir: Path,
    number: int,
    hand_over: bool,
    draw: random.Random,
) -> str | None:
    """Sends SIGKILL; returns the moment that it hit, or None if the run had ended."""
    old, logged = (
        set(micro_run.unfinished_saves(workdir)),
        micro_run.num_logged(workdir),
    )
    longest = _HAND_OVER_SECONDS if hand_over else _LONGEST_SECONDS
    deadline = time.monotonic() + draw.uniform(1, longest)
    saves_before, seen = draw.randrange(3), set()

    def is_due() -> bool:
        if hand_over:
            # Before the first step of the stage, or else right after it.
            return time.monotonic() > deadline or micro_run.num_logged(workdir) > logged
        if number % 2:
            return time.monotonic() > deadline
        seen.update(set(micro_run.unfinished_saves(workdir)) - old)
        return len(seen) > saves_before

    micro_run.wait_until(is_due, process, 600)
    process.kill()
    process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -9:
        raise RuntimeError(f"{workdir}: exit code {process.returncode} before the kill")
    if set(micro_run.unfinished_saves(workdir)) - old:
        return "in a save"
    if not micro_run.num_logged(workdir):
        return "at a hand-over" if hand_over else "before the first step"
    return "elsewhere"
