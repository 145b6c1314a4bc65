"""Does all that steps.py lists, in processes of their own; goes on where it stopped."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from hive_jax.config import differences
from hive_jax.console import log, progress_bar
from hive_jax.errors import ConfigError, HiveError, OutputError
from hive_jax.io import output_errors, read_json, write_json
from hive_jax.locks import exclusive_lock
from tools.reproduce import steps

_ROOT = Path(__file__).resolve().parents[2]
_SETTINGS = "reproduce.json"
_TAIL = 15  # lines of a failed command that are shown


class StepError(HiveError):
    """A command that failed."""

    exit_code = 70


def reproduce(plan: steps.Reproduction, seeds: int) -> Path:
    """Runs all steps of a reproduction; returns the folder of the tables.

    After each seed the tables of all seeds so far are written. Finished steps are
    skipped, so an interrupted reproduction is resumed, and one with more fusions goes on.

    Args:
      plan: what is compared.
      seeds: number of seeds, from 0 on.

    Raises:
      ConfigError: `seeds` is not 1 or more.
      OutputError: the folder has a reproduction of another scale or decoder.
      StepError: a command failed; the message names it and its log.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; expected 1 or more")
    root = plan.out
    with exclusive_lock(root):
        _require_same(plan)
        # Before all seeds, which share these files.
        pending = [steps.benchmarks(plan), *steps.decoder(plan)]
        for seed in range(seeds):
            pending += [*steps.steps_of_seed(plan, seed)]
            # After each seed: the tables of the seeds so far are there early.
            pending.append(steps.comparison(plan, seed + 1))
        if plan.scale.depths:
            pending += [*steps.depths(plan)]
        with progress_bar("reproduce", len(pending), 0) as bar:
            for number, step in enumerate(pending, 1):
                # A command that was stopped has not written this file: it runs again,
                # and resumes.
                if not step.done.exists():
                    log(f"[{number}/{len(pending)}] {step.name}")
                    _run(step, root / "logs")
                bar.update()
    return root / "comparison"


def _require_same(plan: steps.Reproduction) -> None:
    # Not the fusions: those of before serve with others, too.
    settings = dataclasses.asdict(plan.scale) | {"decoder": plan.decoder}
    path = plan.out / _SETTINGS
    if not path.is_file():
        write_json(path, settings)
    elif changed := differences(read_json(path), settings):
        listed = "\n  ".join(changed)
        raise OutputError(
            f"{plan.out} has a reproduction of another scale or decoder (there -> now):\n"
            f"  {listed}\n"
            "Choose another --out"
        )


def _run(step: steps.Step, logs: Path) -> None:
    """Runs one command with its output in a log file."""
    program, *arguments = step.command
    tool = _ROOT / "tools" / f"{program}.py"
    # A file of tools/, or else a module of the package.
    start = [str(tool)] if tool.is_file() else ["-m", f"hive_jax.{program}"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))
        )
    }
    log = logs / f"{step.name.replace(', ', '_').replace(' ', '_')}.log"
    with output_errors(log):
        logs.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            # A process for each: memory and compiled programs are freed between them.
            code = subprocess.call(
                [sys.executable, *start, *arguments],
                cwd=_ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
    if code:
        tail = "\n  ".join(log.read_text("utf-8", "replace").splitlines()[-_TAIL:])
        raise StepError(
            f"{step.name} ended with code {code}. Run the same command again to go on "
            f"from there; its output is in {log}:\n  {tail}"
        )
