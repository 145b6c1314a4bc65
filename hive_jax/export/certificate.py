"""The certificate of an export: loaded by the stock class, and compared with ours.

The check runs in a fresh process, in this Python or in another one that has torch and
transformers; it reads nothing but the folder and the fixed inputs.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.transforms import resize_image
from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.export import reference
from hive_jax.weights import hf_models

# Of the largest value: activations of large models are in the hundreds.
TOLERANCE = 1e-4
# PIL's own result, and what torchvision makes of the same (2 of 255 steps).
_IMAGE_TOLERANCE = 2.5 / 127.5
_HINTS = {
    "vlm": "\n(LLaVA with a Gemma 1 or 2 computes otherwise in transformers 4 than in "
    "5; --target says for which it is.)"
}
_SCRIPT = Path(__file__).parent / "torch" / "check.py"


def check(
    folder: Path,
    part: str,
    config,
    arrays: Mapping[str, np.ndarray],
    *,
    preprocessing: str,
    tokenizer: Tokenizer | None,
    image_token_id: int | None = None,
    python: str = "",
) -> dict:
    """Compares the model in a folder with ours.

    Args:
      part: "encoder", "two_towers", "decoder", "vlm" or "hive".
      config, arrays: our model, as `reference.reference` takes it.
      preprocessing: of images; the folder has the nearest of transformers.
      tokenizer: ours, or None if the folder has none.
      python: another interpreter to run the check with.

    Returns:
      The entry "check" of hive_export.json. "run" is False, with the reason, where
      there is no torch.

    Raises:
      CheckpointError: keys are missing or unexpected, or an output differs.
      ConfigError: `python` cannot run the check.
    """
    if not python and importlib.util.find_spec("torch") is None:
        return not_run("torch is not installed where the export was made")
    inputs = reference.fixed_inputs(part, config, tokenizer, image_token_id)
    report, outputs = _run(folder, inputs, python)
    config, left_out = reference.comparable(part, config)
    generated = outputs.get("greedy")
    wanted = reference.reference(part, config, arrays, inputs, generated)
    wanted |= _files(part, config, inputs, preprocessing, tokenizer)
    compared = _compared(part, report, outputs, wanted, tokenizer)
    return compared | {"left_out": left_out}


def not_run(reason: str) -> dict:
    """What the certificate says where nothing was checked."""
    return {"run": False, "reason": reason}


def _files(part, config, inputs, preprocessing, tokenizer) -> dict[str, np.ndarray]:
    """What training makes of an image file and of a text."""
    wanted = {}
    if part != "decoder":
        size = inputs["pixel_values"].shape[-1]
        image = Image.fromarray(inputs["image_file"])
        image = resize_image(
            image, size, hf_models.nearest_preprocessing(preprocessing)
        )
        pixels = image.astype(np.float32) / 127.5 - 1.0
        wanted["image processor"] = pixels.transpose(2, 0, 1)[None]
    if tokenizer and part in ("two_towers", "decoder", "hive"):
        wanted["tokenizer"] = reference.text_ids(tokenizer, inputs)
    if tokenizer and part == "vlm":
        ids = reference.template_ids(tokenizer, inputs)
        wanted["chat template"] = wanted["chat template, one string"] = ids
    return wanted


def _run(folder: Path, inputs: Mapping, python: str) -> tuple[dict, dict]:
    with tempfile.TemporaryDirectory() as temporary:
        inputs_path = os.path.join(temporary, "inputs.npz")
        outputs_path = os.path.join(temporary, "outputs.npz")
        np.savez(inputs_path, **inputs)
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
                f"the export could not be loaded back (exit code {done.returncode}):\n"
                f"{done.stderr.strip()[-2000:]}"
            )
        with np.load(outputs_path) as file:
            outputs = dict(file)
    return json.loads(str(outputs.pop("report"))), outputs


def _compared(part: str, report: dict, outputs: dict, wanted: dict, tokenizer) -> dict:
    """The report with all differences. CheckpointError if they are too large."""
    problems = [f"{kind}: {report[kind]}" for kind in report if kind.endswith("_keys")]
    problems = [line for line in problems if not line.endswith("[]")]
    differences = {}
    for name in sorted({*wanted, *outputs}):
        if name not in wanted or name not in outputs:
            where = "torch" if name not in outputs else "hive_jax"
            problems.append(f"{name}: not computed by {where}")
            continue
        got, want = outputs[name], wanted[name]
        if got.shape != want.shape:
            problems.append(f"{name}: shape {got.shape}; expected {want.shape}")
        elif want.dtype.kind in "iu":
            if not np.array_equal(got, want):
                problems.append(f"{name}: {got.tolist()}; expected {want.tolist()}")
        else:
            difference = float(np.abs(got - want).max())
            size = max(1.0, float(np.abs(want).max()))
            differences[name] = difference
            limit = _IMAGE_TOLERANCE if name == "image processor" else TOLERANCE * size
            if not difference <= limit:
                problems.append(f"{name}: off by {difference:.2e}; limit {limit:.2e}")
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"the export is not the model, for {report['class']} of transformers "
            f"{report['transformers']}:\n  {listed}{_HINTS.get(part, '')}"
        )
    result = {"run": True, **report, "tolerance": TOLERANCE}
    result["max_abs_difference"] = differences
    equal = [name for name in wanted if wanted[name].dtype.kind in "iu"]
    result["equal"] = sorted(equal)
    if "greedy" in wanted:
        result["greedy_tokens"] = wanted["greedy"].tolist()
        if tokenizer:
            texts = [tokenizer.decode(row).split("\n")[0] for row in wanted["greedy"]]
            result["greedy_text"] = texts
    return result


def summary(check: dict) -> str:
    """The entry "check" as people read it."""
    if not check["run"]:
        return f"not checked: {check['reason']}"
    versions = f"transformers {check['transformers']}, torch {check['torch']}"
    lines = [f"loaded by {check['class']}, {versions}: no key missing, none unexpected"]
    for name, difference in check["max_abs_difference"].items():
        lines.append(f"  {name}: largest difference {difference:.1e}")
    lines += [f"  {name}: equal" for name in check["equal"]]
    lines += [f"  {name}: left out by the class" for name in check["left_out"]]
    lines += [f"  greedy: {text}" for text in check.get("greedy_text", ())]
    return "\n".join(lines)
