"""Trains with one process on one device, and with two processes of two devices each."""

import json
from collections.abc import Sequence
from pathlib import Path

from tools.fault_suite import micro_run

# Of losses, relative. float32 rounds by up to 6e-8; sums over other parts of a batch,
# and five updates through Adam, have made up to 4e-7 of it.
TOLERANCE = 2e-6
_STEPS = ("--config.total_steps=6", "--config.log_every=1", "--config.eval_every=3")


def run_alone(arguments: Sequence[str], cache: Path) -> str:
    """Trains with one process on one device; returns its output.

    Args:
      arguments: the command line.
      cache: folder of compiled programs.
    """
    return micro_run.finish(micro_run.start(arguments, cache))


def run_joined(arguments: Sequence[str], cache: Path) -> list[str]:
    """Trains with two processes of two devices each; returns their outputs.

    Args:
      arguments: the command line, without those of a job.
      cache: folder of compiled programs.
    """
    port = micro_run.free_port()
    commands = [
        micro_run.joined([*arguments, *micro_run.MESH], process, port)
        for process in (0, 1)
    ]
    return micro_run.finish_all(
        [micro_run.start(command, cache, devices=2) for command in commands]
    )


def difference(workdir: Path, other: Path) -> float:
    """Returns the largest relative difference of the losses of two runs.

    Raises RuntimeError if they have not logged the same ones.
    """
    left, right = _losses(workdir), _losses(other)
    if not left or left.keys() != right.keys():
        raise RuntimeError(f"{workdir} and {other} have logged different losses")
    return max(abs(left[key] - right[key]) / abs(left[key]) for key in left)


def _losses(workdir: Path) -> dict[tuple[str, int], float]:
    """Returns (name, step) -> every loss in metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        (name, row["step"]): value
        for row in map(json.loads, lines)
        for name, value in row.items()
        if name == "train/loss" or name.startswith("validation/loss")
    }


def compare(fusion: str, stage: int, folder: Path, cache: Path) -> float:
    """Trains a stage both ways from the same parameters, those of the stage before.

    Returns the difference of the losses, as `difference`.

    Args:
      fusion: of the model.
      stage: 1, 2 or 3; the one before must have been trained in `folder`.
      folder: for workdirs.
      cache: folder of compiled programs.
    """
    alone = folder / f"{fusion}{stage}"
    together = folder / f"{fusion}{stage}_joined"
    config = f"stage{stage}.py:fusion={fusion}"
    init = (f"--config.init={folder / f'{fusion}{stage - 1}'}",) if stage > 1 else ()
    run_alone(micro_run.command(config, alone, *_STEPS, *init), cache)
    run_joined(micro_run.command(config, together, *_STEPS, *init), cache)
    return difference(alone, together)
