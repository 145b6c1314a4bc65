"""Restores checkpoints of one mesh on another, and goes on training there."""

import functools
import os
from pathlib import Path

import jax

from hive_jax.config.cli import read_config
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.experiment import Experiment
from hive_jax.training.resolve import resolve_config
from hive_jax.training.train_step import TrainState
from tools.fault_suite import micro_run, processes, stored_bits
from tools.fault_suite.figure import Figure

_SAVED_STEP, _FOLLOWING = 5, 20
_TOLERANCE = 1e-5  # of losses, relative
# data, fsdp, tensor; of 8 devices.
PAIRS = (
    ((8, 1, 1), (1, 8, 1)),
    ((1, 8, 1), (2, 2, 2)),
    ((2, 2, 2), (8, 1, 1)),
    ((1, 4, 2), (1, 8, 1)),
    ((1, 8, 1), (1, 4, 2)),
    ((8, 1, 1), (2, 2, 2)),
)
RUNS_OF_PROCESSES = tuple(
    (fusion, stage)
    for fusion in ("hive", "cascaded", "joint", "self_attention")
    for stage in (1, 2, 3)
)


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Restores on other meshes; then compares runs of two processes with those of one.

    Args:
      count: cases: first the pairs of meshes, then fusions and stages of processes.
      folder: for workdirs.
      cache: folder of compiled programs.
    """
    failures, largest = [], 0.0
    pairs = PAIRS[:count]
    for saved, restored in pairs:
        case = f"{_name(saved)} to {_name(restored)}"
        workdir = folder / _name(saved)
        bits, expected = _train(saved, workdir)
        with Checkpoints(str(workdir), read_only=True) as checkpoints:
            abstract = _experiment(restored).program.abstract_state
            state, _ = checkpoints.restore(abstract)
        if stored_bits.bits_of(state) != bits:
            failures.append(f"{case}: other bits")
        losses = _continue(restored, state)
        difference = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
        largest = max(largest, difference)
        if not difference <= _TOLERANCE:
            failures.append(f"{case}: losses differ by {difference:.1e}")
    seen = (
        f"equal bits; losses of {_FOLLOWING} following steps within {largest:.1e}"
        if not failures
        else f"{len(failures)} differ"
    )
    runs = RUNS_OF_PROCESSES[: max(0, count - len(PAIRS))]
    differences = [processes.compare(*run, folder, cache) for run in runs]
    for run, difference in zip(runs, differences, strict=True):
        if not difference <= processes.TOLERANCE:
            failures.append(f"{run}: two processes differ by {difference:.1e}")
    if runs:
        seen += (
            f"; {len(runs)} runs of two processes with two devices each within "
            f"{max(differences):.1e} of one process"
        )
    return Figure(len(pairs) + len(runs), seen, failures)


def _name(mesh: tuple[int, int, int]) -> str:
    return "x".join(map(str, mesh))


@functools.cache
def _experiment(mesh: tuple[int, int, int]) -> Experiment:
    """Returns the run of the micro model on a mesh of 8 devices."""
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    overrides = (
        *micro_run.MICRO,
        micro_run.ALL_TRAIN,
        *(f"--config.mesh.{axis}={size}" for axis, size in axes),
        f"--config.total_steps={_SAVED_STEP + _FOLLOWING}",
    )
    config = read_config(f"stage1:{micro_run.TOWERS}", overrides)
    return Experiment(resolve_config(config))


@functools.cache
def _train(mesh: tuple, workdir: os.PathLike) -> tuple[str, list[float]]:
    """Saves a step; returns its bits and the losses of the steps that follow."""
    run = _experiment(mesh)
    state = run.start()
    for batch in run.loader.batches(0, _SAVED_STEP):
        state, _ = run.program.train_step(state, (batch,))
    bits = stored_bits.bits_of(state)
    with Checkpoints(str(workdir)) as checkpoints:
        checkpoints.save(_SAVED_STEP, state, run.meta(_SAVED_STEP))
        checkpoints.wait()
    return bits, _continue(mesh, state)


def _continue(mesh: tuple[int, int, int], state: TrainState) -> list[float]:
    """Returns the losses of the steps after a saved one; gives the state away."""
    run, losses = _experiment(mesh), []
    for batch in run.loader.batches(_SAVED_STEP, _SAVED_STEP + _FOLLOWING):
        state, metrics = run.program.train_step(state, (batch,))
        losses.append(metrics["loss"])
    return [float(loss) for loss in jax.device_get(losses)]
