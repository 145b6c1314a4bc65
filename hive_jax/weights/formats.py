"""Recognizes weights in formats that are not read: one line names each, and the remedy.

Read are folders in the layout of transformers with safetensors, and big_vision's .npz.
"""

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from hive_jax.errors import CheckpointError, HiveError, MissingInputError
from hive_jax.io import read_json
from hive_jax.weights.safetensors import FLOAT_DTYPES, INDEX, SINGLE, Tensor

_EXPECTED = "expected a folder with config.json and model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Suffix of a file -> its format, and where to get the same weights.
_OTHER_FILES = {
    ".gguf": "a GGUF file of llama.cpp, in most cases quantized; "
    f"{_EXPECTED}: those of the model that it was made from",
    ".h5": f"a TensorFlow file of transformers 4; {_EXPECTED}: transformers 4 converts "
    "it with from_pretrained(FOLDER, from_tf=True).save_pretrained('converted')",
    ".msgpack": f"a Flax file of transformers 4; {_EXPECTED}: transformers 4 converts "
    "it with from_pretrained(FOLDER, from_flax=True).save_pretrained('converted')",
    ".onnx": f"an ONNX graph; {_EXPECTED}: those of the model that it was exported from",
}
# Tensors that libraries for quantization store beside or in place of a weight:
# bitsandbytes, GPTQ and AWQ, compressed-tensors, fp8.
_QUANTIZED = re.compile(
    r"\.(SCB|absmax|quant_map|qweight|qzeros|weight_packed|weight_scale(_inv)?)$"
)

_log = logging.getLogger(__name__)


def require_readable_file(path: Path) -> None:
    """Raises CheckpointError if a file of weights is in a format that is not read."""
    folder = path.parent
    if path.suffix in (".safetensors", ".json"):
        require_readable_folder(folder, str(folder))
        raise CheckpointError(
            f"{path} is one file of a model; give its folder, {folder}"
        )
    if path.suffix in _PICKLED:
        raise _pickled_file_error(path)
    if path.suffix in _OTHER_FILES:
        raise CheckpointError(f"{path} is {_OTHER_FILES[path.suffix]}")


def read_config(folder: Path, source: str) -> dict:
    """Returns the content of a folder's config.json.

    Args:
      folder: of the model.
      source: path or hub id that users gave, for messages.

    Raises:
      MissingInputError: there is no config.json.
      CheckpointError: the folder is in another format, or config.json is not JSON.
    """
    require_readable_folder(folder, source)
    config = read_json(folder / "config.json", error=CheckpointError)
    model_type = config.get("model_type")
    if model_type in (None, "timm_wrapper") and isinstance(
        name := config.get("architecture"), str
    ):
        raise CheckpointError(f"{source} is the timm model {name!r:.80}; {_twin(name)}")
    return config


def require_readable_folder(folder: Path, source: str) -> None:
    """Raises CheckpointError or MissingInputError for a folder without a model in the
    layout of transformers.

    Args:
      folder: the folder.
      source: path or hub id that users gave, for messages.
    """
    if (folder / "adapter_config.json").is_file():
        raise _adapter_error(folder, source)
    if any(folder.glob("adapter_model.*")):
        raise CheckpointError(
            f"{source} is an adapter (LoRA), not a whole model, and lacks "
            "adapter_config.json; expected the merged model: peft's merge_and_unload()"
        )
    # exists: the reader refuses a pipe by name.
    if (folder / "config.json").exists():
        return
    if any(folder.glob("open_clip_*")):
        raise CheckpointError(f"{source} is an open_clip model; {_twin(source)}")
    if (folder / "snapshots").is_dir() and folder.name.startswith("models--"):
        hub_id = folder.name.removeprefix("models--").replace("--", "/")
        raise CheckpointError(
            f"{source} is the cache of the hub id {hub_id}; give {hub_id}, or a folder "
            f"in {folder / 'snapshots'}"
        )
    if any((folder / name).exists() for name in ("_METADATA", "_CHECKPOINT_METADATA")):
        raise _orbax_error(folder, source)
    raise _no_config_error(folder, source)


def require_float_weights(
    config: Mapping, tensors: Mapping[str, Tensor], source: str
) -> None:
    """Raises CheckpointError for quantized weights.

    A model that was quantized and stored as floats is read as it is, with a warning.

    Args:
      config: content of config.json.
      tensors: tensors of the files by name.
      source: path or hub id that users gave, for messages.
    """
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    # mlx calls it "quantization".
    about = config.get("quantization_config") or config.get("quantization") or nested
    companions = [name for name in tensors if _QUANTIZED.search(name)]
    if not about and not companions:
        return
    # Indices and masks (position_ids) are integers in models of floats as well.
    dtypes = {
        tensor.dtype
        for name, tensor in tensors.items()
        if tensor.dtype not in FLOAT_DTYPES and not name.endswith("position_ids")
    }
    method = about.get("quant_method") if isinstance(about, dict) else None
    by = f" by {method}" if isinstance(method, str) else ""
    if companions or dtypes:
        stored = f", stored as {', '.join(sorted(dtypes))}" if dtypes else ""
        raise CheckpointError(
            f"{source}: the weights are quantized{by}{stored}; expected float32, "
            "bfloat16 or float16: use the model that they were made from"
        )
    _log.warning(
        "%s: config.json says quantized%s, and all tensors are floats: read as they are",
        source,
        by,
    )


def require_safetensors(folder: Path) -> None:
    """Raises CheckpointError or MissingInputError for a folder without weights in
    safetensors."""
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise _no_tensors_error(folder)


def _no_tensors_error(folder: Path) -> HiveError:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if shards := [path.name for path in files if path.suffix == ".safetensors"]:
        return MissingInputError(
            f"{folder} has {', '.join(shards[:3])}; expected {SINGLE}, or {INDEX} beside "
            "the shards that it lists"
        )
    # Of all that trainers leave in a folder, the weights come first.
    pickled = [path for path in files if path.suffix in _PICKLED]
    if pickled:
        return _pickled_file_error(
            min(pickled, key=lambda path: not path.name.startswith("pytorch_model"))
        )
    for path in files:
        if path.suffix in _OTHER_FILES:
            return CheckpointError(f"{path} is {_OTHER_FILES[path.suffix]}")
    return MissingInputError(
        f"{folder} holds neither {SINGLE} nor {INDEX}. Of a hub id, only safetensors are "
        "downloaded: get others with `hf download ID --local-dir FOLDER`, and give the "
        "folder"
    )


def _pickled_file_error(path: Path) -> CheckpointError:
    """Returns the error for a pickled file, with the command that converts its folder.

    The command copies tokenizer and preprocessing as they are, and saves the weights by
    the class that config.json names, because AutoModel would leave out a head or add a
    random tower.
    """
    folder = path.parent
    message = (
        f"{path}: pickled files can run code and are not read; expected safetensors."
    )
    # transformers opens these names alone.
    names = ("config.json", "pytorch_model*.bin*")
    if not all(any(folder.glob(name)) for name in names):
        return CheckpointError(
            f"{message} {_EXPECTED.capitalize()}, as save_pretrained of transformers "
            "writes it where the model was made"
        )
    config = read_json(folder / "config.json", error=CheckpointError)
    match config.get("architectures"):
        # The file is untrusted, and the command is meant to be run.
        case [str(name)] if re.fullmatch(r"[A-Z]\w*", name, re.ASCII):
            pass
        case _:
            name = "AutoModel"
    source = json.dumps(str(folder), ensure_ascii=False)
    code = (
        "import shutil, transformers; "
        f'shutil.copytree({source}, "converted", '
        'ignore=shutil.ignore_patterns("*.bin*", "*.pt*")); '
        f"transformers.{name}.from_pretrained({source})"
        '.save_pretrained("converted")'
    )
    return CheckpointError(
        f"{message} Convert the folder where torch and transformers are installed:\n"
        f"  python -c {shlex.quote(code)}"
    )


def _adapter_error(folder: Path, source: str) -> CheckpointError:
    adapter = read_json(folder / "adapter_config.json", error=CheckpointError)
    base = str(adapter.get("base_model_name_or_path"))
    kind = str(adapter.get("peft_type", "LORA"))
    return CheckpointError(
        f"{source} is an adapter ({kind:.20}) of {base:.200}, not a whole model; expected "
        "the merged model: load the base, then peft's PeftModel.from_pretrained(base, "
        "FOLDER).merge_and_unload().save_pretrained('merged')"
    )


def _twin(name: str) -> str:
    """Returns where the weights of a timm or open_clip model are in transformers'
    layout."""
    if "siglip" in name.lower():
        return (
            "expected the same SigLIP in the layout of transformers, "
            "google/siglip-... or google/siglip2-... on the hub"
        )
    return "expected a SigLIP or a decoder in the layout of transformers"


def _orbax_error(folder: Path, source: str) -> CheckpointError:
    for parent in folder.absolute().parents[:2]:
        if parent.name == "checkpoints":
            return CheckpointError(
                f"{source} is a checkpoint of a run; give its workdir, {parent.parent}"
            )
    return CheckpointError(
        f"{source} is an Orbax checkpoint of another project; expected the model in the "
        "layout of transformers (Gemma: google/gemma-... on the hub), or a big_vision "
        ".npz"
    )


def _no_config_error(folder: Path, source: str) -> HiveError:
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        return MissingInputError(
            f"{source} has no config.json, and {len(inside)} of its folders have one: "
            f"give {' or '.join(str(folder / name) for name in inside[:3])}"
        )
    if any(folder.glob("*.safetensors")):
        return MissingInputError(
            f"{source} has tensors and no config.json; expected the config.json that "
            "belongs to them"
        )
    error = _no_tensors_error(folder)
    if isinstance(error, CheckpointError):
        return error
    return MissingInputError(
        f"{source} has no config.json; expected a workdir, or a model in the layout of "
        "transformers"
    )
