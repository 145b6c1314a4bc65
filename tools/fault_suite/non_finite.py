"""Puts NaN and infinity into the state or the loss of a run; no checkpoint may have any."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from hive_jax.errors import HiveError
from hive_jax.train import main as train
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.compiled_ahead import CompiledAhead
from hive_jax.training.train_step import TrainState
from tools.fault_suite import in_process, micro_run, stored_bits
from tools.fault_suite.figure import Figure, format_counts

_TOTAL_STEPS = 4
# No gradient reaches these: their values are in no loss.
_UNREAD = "params/img/(MAPHead_0|Transformer/encoder_norm)/"
# Kind of place -> pattern of the names of its leaves; "" for the loss alone.
_PLACES = {
    "parameter": r"params/(?!img/(MAPHead_0|Transformer/encoder_norm)/)",
    "first moment": r"opt_state/.*\bmu/",
    "second moment": r"opt_state/.*\bnu/",
    "unread parameter": _UNREAD,
    "loss": "",
}
_VALUES = (np.nan, np.inf, -np.inf)


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Trains in this process, with one value spoiled after a random step.

    Args:
      count: injections.
      folder: for workdirs.
      cache: not used; this process compiles once.
    """
    draw, ends, failures = random.Random(0), Counter(), []
    with in_process.shared_programs() as programs:
        arguments = _arguments(folder / "first")
        code, output = in_process.call(train, arguments)
        if code:
            raise RuntimeError(output)
        abstract = trees.flatten(stored_bits.abstract_leaves(folder / "first"))
        (program,) = programs.values()
        step = program.train_step
        for number in range(count):
            place = list(_PLACES)[number % len(_PLACES)]
            names = [
                n for n in abstract if _PLACES[place] and re.match(_PLACES[place], n)
            ]
            names = [n for n in names if abstract[n].dtype != np.int32]
            name = draw.choice(names) if names else "the loss"
            value, at = draw.choice(_VALUES), draw.randint(1, _TOTAL_STEPS)
            workdir = folder / "run"
            shutil.rmtree(workdir, ignore_errors=True)
            program.train_step = _SpoilingStep(step, name, value, at)
            code, output = in_process.call(train, _arguments(workdir))
            case = f"{value} in {name} after step {at}"
            ends[f"with code {code}"] += 1
            if bad := _not_finite(workdir, abstract):
                failures.append(f"{case}: stored in {bad}")
            if code != 70 or "Traceback" in output:
                failures.append(f"{case}: code {code}: {output[-500:]}")
        program.train_step = step
    seen = f"{', '.join(_PLACES)}: {format_counts(ends)}; {len(failures)} stored or unnoticed"
    return Figure(count, seen, failures)


def _arguments(workdir: Path) -> list[str]:
    options = (
        *("--config.init=", "--config.previous=", "--config.log_every=2"),
        *("--config.checkpoint_every=1", f"--config.total_steps={_TOTAL_STEPS}"),
        f"--config.max_to_keep={_TOTAL_STEPS}",
    )
    return micro_run.train_arguments("stage3.py", workdir, *options)


class _SpoilingStep:
    """A train step that spoils an element of a leaf, or the loss, once.

    Args:
      step: of a Program.
      name: of the leaf, or "the loss".
      value: to put there.
      at: number of the step.
    """

    def __init__(self, step: CompiledAhead, name: str, value: float, at: int):
        self.compile_ahead = step.compile_ahead
        self._step, self._name, self._value, self._at = step, name, value, at

    def __call__(self, state: TrainState, micro_batches):
        state, metrics = self._step(state, micro_batches)
        if int(state.step) != self._at:
            return state, metrics
        if self._name == "the loss":
            return state, metrics | {"loss": metrics["loss"] * self._value}
        leaves = trees.flatten(state)
        leaf = leaves[self._name]
        spoiled = np.array(jax.device_get(leaf))
        spoiled.flat[spoiled.size // 2] = self._value
        leaves[self._name] = jax.device_put(spoiled, leaf.sharding)
        return trees.unflatten(state, leaves), metrics


def _not_finite(workdir: Path, abstract: dict) -> list[str]:
    """Returns "step N: leaf" of every stored leaf with a value that is not finite."""
    bad = []
    for step in micro_run.steps(workdir):
        with Checkpoints(str(workdir), read_only=True) as checkpoints:
            try:
                restored, _ = checkpoints.restore(abstract, step)
            except HiveError as error:
                bad.append(str(error))
                continue
        for name, leaf in trees.flatten(restored).items():
            if not np.isfinite(np.asarray(jax.device_get(leaf), np.float64)).all():
                bad.append(f"step {step}: {name}")
    return bad
