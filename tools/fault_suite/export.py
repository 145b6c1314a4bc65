"""Kills exports; nothing half may have the final name, and what has it has equal bits."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.export.components import COMPONENTS
from hive_jax.training.stored_run import open_run
from tools.fault_suite import micro_run, stored_bits
from tools.fault_suite.figure import Figure, format_counts

# Component, format, prefix of its parameters in the run.
_EXPORTS = (
    ("hive", "huggingface", ""),
    ("encoder", "huggingface", "img/"),
    ("decoder", "big_vision", "llm/"),
    ("encoder", "big_vision", "img/"),
    ("decoder", "huggingface", "llm/"),
)
_WRITING_SECONDS = 0.3


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Kills exports of which half are writing; then exports once undisturbed.

    Args:
      count: kills.
      folder: for the run and the exports.
      cache: folder of compiled programs.
    """
    workdir, exports = folder / "run", folder / "exports"
    stored_bits.train_short(workdir, cache, total_steps=1, every=1)
    exports.mkdir()
    params, _ = open_run(str(workdir)).read_params()
    params = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    draw, moments, failures, done = random.Random(0), Counter(), [], 0
    for number in range(count):
        component, format, prefix = _EXPORTS[number % len(_EXPORTS)]
        out = exports / f"{component}_{format}_{number}"
        process = _start(workdir, component, format, out, cache)
        moments[_kill(process, out, number % 2 == 0, draw)] += 1
        if out.exists():
            done += 1
            failures += _different(out, component, prefix, params)
    tensors = 0
    for component, format, prefix in _EXPORTS:
        out = exports / f"{component}_{format}_0"
        if not out.exists():
            micro_run.finish(_start(workdir, component, format, out, cache))
        failures += _different(out, component, prefix, params)
        tensors += sum(1 for _ in COMPONENTS[component].open(str(out)).leaves())
    seen = (
        f"{format_counts(moments)}; {done} complete under the final name, 0 partial; "
        f"{tensors} tensors of {len(_EXPORTS)} exports bit-equal"
        if not failures
        else f"{len(failures)} partial or different"
    )
    return Figure(count, seen, failures)


def _start(
    workdir: Path, component: str, format: str, out: Path, cache: Path
) -> subprocess.Popen:
    command = [sys.executable, "-m", "hive_jax.export_hf", "--run", str(workdir)]
    command += ["--component", component, "--format", format, "--out", str(out)]
    return micro_run.start([*command, "--no_verify"], cache)


def _kill(
    process: subprocess.Popen, out: Path, in_writing: bool, draw: random.Random
) -> str:
    """Sends SIGKILL at a random moment, or while files are written; returns which."""

    def is_writing() -> bool:
        return any(out.parent.glob(f".{out.name}.{process.pid}.*"))

    if in_writing:
        micro_run.wait_until(is_writing, process)
        time.sleep(draw.uniform(0, _WRITING_SECONDS))
    else:
        micro_run.wait_until(lambda: False, process, draw.uniform(0.5, 4))
    process.kill()
    process.communicate()
    if process.returncode == 0:
        return "too late"
    return "while writing" if is_writing() else "elsewhere"


def _different(out: Path, component: str, prefix: str, params: dict) -> list[str]:
    """Returns a line for each tensor of an export that is not the run's."""
    try:
        leaves = dict(COMPONENTS[component].open(str(out)).leaves())
    except Exception as error:  # noqa: BLE001 - a partial export may lead to any
        return [f"{out.name}: {type(error).__name__}: {error}"]
    expected = {k.removeprefix(prefix) for k in params if k.startswith(prefix)}
    lines = [f"{out.name}: no {name}" for name in expected - leaves.keys()]
    for name, array in leaves.items():
        original = params[prefix + name]
        if array.dtype != original.dtype or array.tobytes() != original.tobytes():
            lines.append(f"{out.name}: other bits of {name}")
    return lines
