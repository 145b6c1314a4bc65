"""Verification of an export: transformers loads it, and its outputs are compared.

The folder is loaded in a fresh process, by this Python or by another one that has torch
and transformers; that process reads nothing but the folder and the example inputs.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from hive_jax.downloads import local_copy
from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.export.component_base import Component
from hive_jax.export.components import COMPONENTS
from hive_jax.export.example_inputs import NEW_TOKENS, TEXT
from hive_jax.export.known_deviation import KnownDeviation
from hive_jax.io import read_json
from hive_jax.weights.safetensors import EXPORT_REPORT

# Relative to the largest value: activations of large models are in the hundreds.
TOLERANCE = 1e-4
# PIL's pixels against those of torchvision: 2 of 255 steps, in units of [-1, 1].
_PIXEL_TOLERANCE = 2.5 / 127.5
_SCRIPT = Path(__file__).parent / "torch" / "run_exported.py"


def verify_folder(folder: str, python: str = "") -> dict:
    """Verifies an exported folder, for instance with another version of transformers.

    Args:
      folder: as `export` writes it.
      python: interpreter that has torch and transformers; empty for this one.

    Returns:
      As `verify_export`.

    Raises:
      MissingInputError: the folder or a file of it is missing.
      CheckpointError: it is not an export, was changed since, or the outputs differ.
    """
    local = local_copy(folder)
    report = read_json(local / EXPORT_REPORT, error=CheckpointError)
    name = report.get("component")
    if name not in [*COMPONENTS]:  # a list, because JSON values need not be hashable
        raise CheckpointError(
            f"{folder}/{EXPORT_REPORT}: component is {name!r}; expected one of "
            f"{', '.join(COMPONENTS)}"
        )
    # Compares the files and tensors with the hashes in the report.
    component = COMPONENTS[name].from_folder(local, report)
    return verify_export(component, local, python)


def verify_export(component: Component, folder: Path, python: str = "") -> dict:
    """Compares the outputs of an exported folder with those of hive_jax.

    Args:
      component: with the parameter values that the folder should hold.
      folder: its export.
      python: interpreter that has torch and transformers; empty for this one.

    Returns:
      The entry "verification" of hive_export.json: versions, the largest difference
      of each output, and the known deviations of this transformers with reason, and
      figure for pixels. "run" is False, with the reason, if torch is not installed.

    Raises:
      CheckpointError: keys are missing or unexpected, or an output differs.
      ConfigError: `python` cannot be run.
    """
    if not python and importlib.util.find_spec("torch") is None:
        return skipped("torch is not installed where the export was made")
    inputs = component.example_inputs()
    expected = component.reference_processor_outputs(inputs)
    request = {
        "auto_class": component.auto_class,
        "remote_code": component.remote_code,
        "options": component.torch_options(),
        "outputs": component.torch_outputs(),
        "processors": list(expected),
        "text": TEXT,
        "texts": component.texts,
        "tokenizer_options": component.tokenizer_options(),
        "generates": component.generates(),
        "new_tokens": NEW_TOKENS,
    }
    report, outputs = _run_exported(folder, request, inputs, python)
    with jax.default_matmul_precision("highest"):
        reference = component.reference_outputs(inputs, outputs.get("greedy"))
    expected |= {name: np.asarray(output) for name, output in reference.items()}
    problems, differences, known = _compare(
        report, outputs, expected, component.known_deviations(inputs)
    )
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"the export differs from the model, loaded by {report['class']} of "
            f"transformers {report['transformers']}:\n  {listed}"
            f"{component.mismatch_hint}"
        )
    ids = [name for name in expected if expected[name].dtype.kind in "iu"]
    equal = [name for name in ids if name not in known]
    verification = {"run": True, **report, "tolerance": TOLERANCE}
    verification |= {"max_abs_difference": differences, "equal": sorted(equal)}
    verification["known_deviations"] = known
    if "greedy" in expected:
        tokens = expected["greedy"]
        texts = [component.tokenizer.decode(row).split("\n")[0] for row in tokens]
        verification |= {"greedy_tokens": tokens.tolist(), "greedy_text": texts}
    return verification | {"left_out": component.left_out()}


def skipped(reason: str) -> dict:
    """Returns the entry "verification" of an export that was not verified."""
    return {"run": False, "reason": reason}


def _run_exported(
    folder: Path, request: Mapping, inputs: Mapping, python: str
) -> tuple[dict, dict[str, np.ndarray]]:
    """Runs torch/run_exported.py; returns its report and outputs."""
    with tempfile.TemporaryDirectory() as temporary:
        inputs_path = os.path.join(temporary, "inputs.npz")
        outputs_path = os.path.join(temporary, "outputs.npz")
        np.savez(inputs_path, request=json.dumps(request), **inputs)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": temporary,
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [python or sys.executable, str(_SCRIPT), str(folder)]
        try:
            done = subprocess.run(
                [*command, inputs_path, outputs_path],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise ConfigError(f"{python} cannot be run: {error}") from None
        if done.returncode:
            raise CheckpointError(
                f"the export could not be loaded (exit code {done.returncode}):\n"
                f"{done.stderr.strip()[-2000:]}"
            )
        with np.load(outputs_path) as file:
            outputs = dict(file)
    return json.loads(str(outputs.pop("report"))), outputs


def _compare(
    report: Mapping,
    outputs: Mapping,
    expected: Mapping,
    deviations: Mapping[str, KnownDeviation],
) -> tuple[list[str], dict[str, float], dict[str, dict]]:
    """Returns a line for each problem, each float output's largest difference, and the
    known deviations that occurred."""
    keys = {kind: report[kind] for kind in report if kind.endswith("_keys")}
    problems = [f"{kind}: {names}" for kind, names in keys.items() if names]
    differences, known = {}, {}
    for name in sorted({*expected, *outputs}):
        if name not in expected or name not in outputs:
            where = "torch" if name not in outputs else "hive_jax"
            problems.append(f"{name}: not computed by {where}")
            continue
        got, want, other = outputs[name], expected[name], deviations.get(name)
        if got.shape != want.shape:
            problems.append(f"{name}: shape {got.shape}; expected {want.shape}")
        elif want.dtype.kind in "iu":
            if np.array_equal(got, want):
                continue
            if other and np.array_equal(got, other.output):
                known[name] = {"reason": other.reason}
            else:
                problems.append(f"{name}: {got.tolist()}; expected {want.tolist()}")
        else:
            difference = float(np.abs(got - want).max())
            limit = TOLERANCE * max(1.0, float(np.abs(want).max()))
            if name.startswith("image processor"):
                limit = _PIXEL_TOLERANCE
            if other and np.abs(got - other.output).max() <= limit < difference:
                known[name] = {
                    "max_abs_difference": difference,
                    "reason": other.reason,
                }
                continue
            differences[name] = difference
            if not difference <= limit:  # NaN too
                problems.append(f"{name}: off by {difference:.2e}; limit {limit:.2e}")
    return problems, differences, known


def summary(verification: Mapping) -> str:
    """Formats the entry "verification" of hive_export.json, one output a line."""
    if not verification["run"]:
        return f"not verified: {verification['reason']}"
    versions = (
        f"transformers {verification['transformers']}, torch {verification['torch']}"
    )
    lines = [
        f"loaded by {verification['class']}, {versions}: no missing, no unexpected keys"
    ]
    for name, difference in verification["max_abs_difference"].items():
        lines.append(f"  {name}: largest difference {difference:.1e}")
    for name, deviation in verification["known_deviations"].items():
        difference = deviation.get("max_abs_difference")
        by = "" if difference is None else f" by {difference:.1e}"
        lines.append(f"  {name}: differs{by}: {deviation['reason']}")
    lines += [f"  {name}: equal" for name in verification["equal"]]
    lines += [
        f"  {name}: not computed by the class" for name in verification["left_out"]
    ]
    if "greedy_text" in verification:
        for tokens, text in zip(
            verification["greedy_tokens"], verification["greedy_text"], strict=True
        ):
            lines.append(f"  greedy: {len(tokens)} tokens, {text!r}")
    return "\n".join(lines)
