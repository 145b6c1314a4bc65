"""Export: from the last checkpoint of a run to files that other programs load."""

import dataclasses
import hashlib
import platform
from pathlib import Path

import jax
import numpy as np

import hive_jax
from hive_jax.config import RunConfig
from hive_jax.data.chat_template import fingerprint_of
from hive_jax.data.tokenizer import BUILTIN, is_builtin
from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.export.choices import FORMATS, TARGETS
from hive_jax.export.component_base import Component
from hive_jax.export.components import COMPONENTS
from hive_jax.export.model_card import model_card
from hive_jax.export.tokenizer import ExportedTokenizer
from hive_jax.export.verify import skipped, verify_export
from hive_jax.io import atomic_dir, atomic_write, require_absent, write_json
from hive_jax.training.stored_run import open_run, read_result
from hive_jax.weights import hf_image_processor, hf_models, safetensors
from hive_jax.weights.big_vision import join_qkv, save_npz
from hive_jax.weights.safetensors import EXPORT_REPORT, cast


def export(
    workdir: str,
    component: str,
    out: str,
    *,
    format: str = "huggingface",
    dtype: str = "float32",
    target: str = "v5",
    verify: bool = True,
    python: str = "",
    newline_ends: bool = False,
) -> dict:
    """Writes a component of a run's last checkpoint.

    Args:
      workdir: of the run.
      component: "encoder", "two_towers", "decoder", "vlm" or "hive".
      out: folder to write; for "big_vision" and "state_dict" a file.
      format: "huggingface"; "big_vision", an .npz; or "state_dict", the same tensors
        as for "huggingface" in one safetensors file.
      dtype: "float32", "bfloat16" or "float16".
      target: version of transformers to write a "vlm" for, "v5" or "v4".
      verify: load a Hugging Face folder with transformers and compare its outputs; see
        `hive_jax.export.verify`.
      python: interpreter that has torch and transformers; empty for this one.
      newline_ends: make the newline, which ends all answers, the end token of the
        tokenizer; for programs that ignore generation_config.json, as lmms-eval.

    Returns:
      The content of hive_export.json; {} for other formats than "huggingface".

    Raises:
      HiveError: nothing was written.
    """
    # Check the arguments before anything is read.
    for name, value, choices in (
        ("component", component, COMPONENTS),
        ("format", format, FORMATS),
        ("dtype", dtype, safetensors.DTYPES),
        ("target", target, TARGETS),
    ):
        if value not in choices:
            expected = ", ".join(choices)
            raise ConfigError(f"{name} is {value!r}; expected one of {expected}")
    generates = COMPONENTS[component].generates()
    if newline_ends and not (generates and format == "huggingface"):
        raise ConfigError(
            "newline_ends needs a component that generates text, and the format "
            f"huggingface; component is {component!r}, format is {format!r}"
        )
    # Nothing is overwritten, and a long export must not fail at its end for that.
    require_absent(out)
    as_type = safetensors.DTYPES[dtype]
    # Read the component from the run's newest good checkpoint.
    exported, run, step = load_component(workdir, component, target)
    # An .npz needs no tokenizer and no verification: the names are those of the run.
    if format == "big_vision":
        _write_npz(out, exported, as_type)
        return {}
    exported = exported.for_transformers()
    if format == "state_dict":
        _write_state_dict(out, exported, as_type)
        return {}
    tokenizer = exported.exported_tokenizer()
    if newline_ends:
        tokenizer = tokenizer.ending_with_newline()
    # Write the folder, read it back, verify it with transformers, describe it; it
    # appears under its name only after all of that.
    with atomic_dir(out) as folder:
        report = _report(exported, run, step, as_type)
        report["tensors"] = _write_model(folder, exported, tokenizer, as_type)
        _require_readable(folder, exported)
        report["verification"] = _verification(
            exported, folder, as_type, verify, python
        )
        card = model_card(
            *(exported, run, step, report["verification"], Path(out).name),
            result=read_result(workdir),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        # Hashes last, of all other files; the report cannot contain its own.
        report["files"] = _file_hashes(folder)
        write_json(folder / EXPORT_REPORT, report)
    return report


def load_component(
    workdir: str, name: str, target: str = "v5"
) -> tuple[Component, RunConfig, int]:
    """Loads a component of a run's last checkpoint.

    Args:
      workdir: of the run.
      name: key of COMPONENTS.
      target: version of transformers to write for, "v4" or "v5".

    Returns:
      The component, the config of the run, and the step of the checkpoint.

    Raises:
      MissingInputError: there is no run, or its tokenizer is missing.
      CheckpointError: the run has no such component, or its tokenizer was replaced by
        another one.
    """
    # Opened read-only: the run may go on training.
    stored = open_run(workdir)
    run, (params, meta) = stored.config, stored.read_params()
    choices = [c.name for c in COMPONENTS.values() if c.is_in(run, set(params))]
    if name not in choices:
        raise CheckpointError(
            f"the run in {workdir} has the branches {', '.join(sorted(params))} and the "
            f"fusion {run.model.fusion!r}, and so no component {name!r}; it can be "
            f"exported as {', '.join(choices)}"
        )
    component = COMPONENTS[name].from_run(run, params, target)
    # Token ids mean nothing without their tokenizer.
    trained_with = meta["inputs"].get("tokenizer")
    if trained_with and component.has_text():
        fingerprint = component.tokenizer.fingerprint
        if fingerprint != trained_with:
            raise CheckpointError(
                f"{run.data.tokenizer} is another tokenizer ({fingerprint}) than the "
                f"one that {workdir} was trained with ({trained_with}): restore that one"
            )
    template = meta["inputs"].get("chat_template")
    if template and component.generates():
        if fingerprint_of(component.tokenizer.chat_template) != template:
            raise CheckpointError(
                f"{run.data.tokenizer} has another chat template than the one that "
                f"{workdir} was trained with ({template}): restore that one"
            )
        component = dataclasses.replace(component, chat=True)
    return component, run, meta["step"]


def _write_npz(out: str, component: Component, dtype: np.dtype) -> None:
    arrays = {
        component.npz_prefix + name: cast(name, array, dtype)
        for name, array in component.arrays.items()
    }
    # What the arrays do not show; see `big_vision.save_npz`.
    about = component.npz_configs() | {"preprocessing": component.preprocessing}
    if component.has_text() and is_builtin(component.tokenizer_source):
        about["tokenizer"] = BUILTIN
    # In big_vision's own layout, where q, k and v may be one array.
    save_npz(out, join_qkv(arrays), about)


def _write_state_dict(out: str, component: Component, dtype: np.dtype) -> None:
    arrays = component.arrays_for_files()
    make, _ = hf_models.tensors(component.layout(), arrays, dtype)
    with atomic_write(out, overwrite=False) as path:
        safetensors.save_safetensors(
            path, {name: make_tensor() for name, make_tensor in make.items()}
        )


def _report(
    component: Component, run: RunConfig, step: int, dtype: np.dtype
) -> dict[str, object]:
    """Returns hive_export.json as far as it is known before files are written."""
    preprocessing = component.preprocessing
    return {
        "hive_jax": hive_jax.__version__,
        "component": component.name,
        "dtype": dtype.name,
        "target": component.target,
        "run": {"name": run.name, "step": step},
        "preprocessing": preprocessing,
        "image_processor": hf_image_processor.nearest_preprocessing(preprocessing),
        "chat_template": component.chat,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        **component.report_fields(),
    }


def _write_model(
    folder: Path,
    component: Component,
    tokenizer: ExportedTokenizer | None,
    dtype: np.dtype,
) -> dict[str, str]:
    """Writes config.json, tensors, tokenizer and processors.

    Returns:
      The hash of each tensor.
    """
    layout = component.layout()
    if tokenizer:
        tokenizer.write(folder)
        ids = tokenizer.special_ids()
        # In both: a model of two towers has a nested configuration of its decoder.
        layout.config.update(ids)
        if "text_config" in layout.config:
            layout.config["text_config"].update(ids)
    if component.generates():
        generation = tokenizer.generation_config()
        write_json(folder / "generation_config.json", generation)
    if component.encoder_config is not None:
        processor = hf_image_processor.image_processor(
            component.encoder_config.image_size,
            hf_image_processor.nearest_preprocessing(component.preprocessing),
            component.processor_class,
        )
        write_json(folder / "preprocessor_config.json", processor)
    for name, content in component.extra_files().items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_json(folder / name, content)
    return hf_models.write(folder, layout, component.arrays_for_files(), dtype)


def _require_readable(folder: Path, component: Component) -> None:
    """Reads the folder back: all tensors must exist, and its config be the model's.

    This covers settings that short example texts do not exercise, such as windows.
    Raises CheckpointError.
    """
    config = component.open(str(folder)).config
    reread = dataclasses.replace(component, config=config)
    if reread.layout().config != component.layout().config:
        raise CheckpointError(
            f"config.json describes {config}; the model is {component.config}: please "
            "report this"
        )


def _verification(
    component: Component, folder: Path, dtype: np.dtype, verify: bool, python: str
) -> dict:
    """Verifies an export; returns the reason instead where it is skipped."""
    if not verify:
        return skipped("it was not asked for")
    if component.needs_transformers_4() and not python:
        reason = "made for transformers 4; name a Python that has it, to check with"
        return skipped(reason)
    # Rounded as the files are, so that the comparison shows errors of the export and
    # not those of bfloat16.
    return verify_export(component.rounded(dtype), folder, python)


def _file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file except tensor files, hashed tensor by tensor."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.suffix != ".safetensors"
    }
