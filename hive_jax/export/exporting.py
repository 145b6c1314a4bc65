"""From a run's checkpoint to the files that others load."""

import dataclasses
import hashlib
import platform
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

import hive_jax
from hive_jax.data.tokenizer import BUILTIN, Tokenizer, is_builtin, tokenizer_file
from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.export import card, certificate
from hive_jax.export.chosen import (
    ROOTS,
    Chosen,
    arrays_for,
    choose,
    layout_of,
    rounded,
    with_image_token,
)
from hive_jax.export.processors import IMAGE_TOKEN, ExportedTokenizer, export_tokenizer
from hive_jax.io import atomic_dir, atomic_write, require_absent, write_json
from hive_jax.weights import hf_models, safetensors
from hive_jax.weights.big_vision import save_npz, together
from hive_jax.weights.safetensors import CERTIFICATE, cast
from hive_jax.weights.sources import OPEN

PARTS = tuple(ROOTS)
FORMATS = ("huggingface", "big_vision", "state_dict")
TARGETS = ("v5", "v4")
_CODE = ("configuration_hive.py", "modeling_hive.py")


def export(
    workdir: str,
    part: str,
    out: str,
    *,
    format: str = "huggingface",
    dtype: str = "float32",
    target: str = "v5",
    check: bool = True,
    python: str = "",
    newline_ends: bool = False,
) -> dict:
    """Writes a part of a run's last checkpoint.

    Args:
      part: "encoder", "two_towers", "decoder", "vlm" or "hive".
      out: a folder; for "big_vision" and "state_dict" a file.
      format: "huggingface"; "big_vision", an .npz; or "state_dict", the same tensors
        as for "huggingface" in one safetensors file.
      dtype: "float32", "bfloat16" or "float16".
      target: version of transformers, where it matters: "v5" or "v4".
      check: load a Hugging Face folder back and compare; see `certificate`.
      python: another interpreter to check with.
      newline_ends: the tokenizer's end token is the newline, which ends all answers;
        for programs that do not read generation_config.json, as lmms-eval.

    Returns:
      The certificate, {} for other formats than "huggingface".

    Raises:
      HiveError: nothing was written.
    """
    for name, value, known in (
        ("part", part, PARTS),
        ("format", format, FORMATS),
        ("target", target, TARGETS),
    ):
        if value not in known:
            raise ConfigError(f"--{name} is {value!r}; expected one of {known}")
    as_type = safetensors.dtype_named(dtype)
    if newline_ends and (part in ("encoder", "two_towers") or format != "huggingface"):
        raise ConfigError(
            f"--newline_ends is for a decoder, vlm or hive in Hugging Face's format; "
            f"this is the {part} as {format}"
        )
    require_absent(out)
    chosen = choose(workdir, part)
    if format == "big_vision":
        _write_npz(out, chosen, as_type)
        return {}
    if format == "state_dict":
        _write_state_dict(out, chosen, as_type, target)
        return {}
    with atomic_dir(out) as folder:
        return _write_folder(
            folder,
            workdir,
            Path(out).name,
            chosen,
            as_type,
            target,
            check,
            python,
            newline_ends,
        )


def _write_npz(out: str, chosen: Chosen, dtype: np.dtype) -> None:
    model, run = chosen.model, chosen.run
    roots = ROOTS[chosen.part]
    configs = {
        "img": run.model.encoder,
        "txt": run.text_tower,
        "llm": run.model.decoder,
    }
    about = {
        root: dataclasses.asdict(configs[root]) for root in roots if root in configs
    }
    if "fusion" in roots:
        about["fusion"] = {"fusion": model.fusion, "connections": model.connections}
    about["preprocessing"] = run.data.preprocessing
    if chosen.part != "encoder" and is_builtin(run.data.tokenizer):
        about["tokenizer"] = BUILTIN
    arrays = {name: cast(name, a, dtype) for name, a in chosen.arrays.items()}
    if chosen.part == "decoder":  # as in PaliGemma's files
        arrays = {f"llm/{name}": array for name, array in arrays.items()}
    save_npz(out, unflatten_dict(together(arrays), sep="/"), about)


def _write_state_dict(out: str, chosen: Chosen, dtype: np.dtype, target: str) -> None:
    token = 0
    if chosen.part == "vlm":
        path = tokenizer_file(chosen.run.data.tokenizer)
        token = export_tokenizer(path, image=True).image_token_id
        chosen, _ = with_image_token(chosen, token)
    layout = layout_of(chosen, token)
    make, _ = hf_models.tensors(layout, arrays_for(chosen, target), dtype)
    with atomic_write(out, overwrite=False) as path:
        safetensors.save_safetensors(
            path, {name: made() for name, made in make.items()}
        )


def _write_folder(
    folder: Path,
    workdir: str,
    name: str,
    chosen: Chosen,
    dtype: np.dtype,
    target: str,
    check: bool,
    python: str,
    newline_ends: bool,
) -> dict:
    part, run = chosen.part, chosen.run
    exported = None
    if part != "encoder":
        path = tokenizer_file(run.data.tokenizer)
        exported = export_tokenizer(path, image=part == "vlm")
        if newline_ends:
            exported = exported.ending_with_newline()
        exported.write(folder)
    about = {
        "hive_jax": hive_jax.__version__,
        "part": part,
        "dtype": dtype.name,
        "target": target,
        "run": {"name": run.name, "step": chosen.step},
        "preprocessing": run.data.preprocessing,
        "image_processor": hf_models.nearest_preprocessing(run.data.preprocessing),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
    }
    if part == "vlm":
        chosen, added = with_image_token(chosen, exported.image_token_id)
        about["image_token"] = {
            "content": IMAGE_TOKEN,
            "id": exported.image_token_id,
            "rows_added": added,
        }
    about["tensors"] = _write_model(folder, chosen, exported, dtype, target)
    _require_read_back(folder, chosen)
    about["check"] = certificate.not_run("it was not asked for")
    if check and target == "v4" and part == "vlm" and not python:
        reason = "made for transformers 4; name a Python that has it, to check with"
        about["check"] = certificate.not_run(reason)
    elif check:
        about["check"] = certificate.check(
            folder,
            part,
            chosen.model,
            rounded(chosen, target, dtype),
            preprocessing=run.data.preprocessing,
            tokenizer=Tokenizer(path) if exported else None,
            image_token_id=exported.image_token_id if exported else None,
            python=python,
        )
    text = card.model_card(
        part, run, chosen.step, about, card.read_result(Path(workdir)), name
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    about["files"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.suffix != ".safetensors"  # each of their tensors has its own
    }
    write_json(folder / CERTIFICATE, about)
    return about


def _require_read_back(folder: Path, chosen: Chosen) -> None:
    """Raises CheckpointError unless config.json says what the model is, windows and
    all that short texts do not show, and the tensors are all there."""
    said = OPEN[chosen.part](str(folder)).config
    again = dataclasses.replace(chosen, model=said)
    if layout_of(again, 0).config != layout_of(chosen, 0).config:
        raise CheckpointError(
            f"config.json says {said}; the model is {chosen.model}: please report this"
        )


def _write_model(
    folder: Path,
    chosen: Chosen,
    exported: ExportedTokenizer | None,
    dtype: np.dtype,
    target: str,
) -> dict[str, str]:
    """config.json, tensors, and what goes with them; returns the tensors' hashes."""
    part, run = chosen.part, chosen.run
    layout = layout_of(chosen, exported.image_token_id if exported else None)
    if exported:
        ids = {
            "pad_token_id": exported.pad_id,
            "bos_token_id": exported.bos_id,
            "eos_token_id": exported.eos_id,
        }
        layout.config.update(ids)
        if "text_config" in layout.config:
            layout.config["text_config"].update(ids)
    if exported and part != "two_towers":
        generation = exported.generation_config()
        write_json(folder / "generation_config.json", generation)
    if part != "decoder":
        processor = "LlavaProcessor" if part == "vlm" else ""
        write_json(
            folder / "preprocessor_config.json",
            hf_models.image_processor(
                run.model.encoder.image_size,
                hf_models.nearest_preprocessing(run.data.preprocessing),
                processor,
            ),
        )
    if part == "vlm":
        write_json(
            folder / "processor_config.json",
            {
                "processor_class": "LlavaProcessor",
                "patch_size": run.model.encoder.patch_size,
                "vision_feature_select_strategy": "full",
                "num_additional_image_tokens": 0,
                "image_token": IMAGE_TOKEN,
            },
        )
    if part == "hive":
        for name in _CODE:
            shutil.copyfile(Path(__file__).parent / "torch" / name, folder / name)
    return hf_models.write(folder, layout, arrays_for(chosen, target), dtype)
