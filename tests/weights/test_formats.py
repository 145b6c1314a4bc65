"""Weights in formats that are not read: one line each, and a remedy that works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers.hub_weights import TOKENIZER
from helpers.huggingface_models import gemma3, randomised, siglip, vision_tower
from helpers.tiny_weights import GEMMA3, IMAGE, write_folder

from hive_jax.errors import CheckpointError, HiveError
from hive_jax.inference.model import load
from hive_jax.weights import (
    hf_image_processor,
    hf_models,
    load_decoder,
    load_encoder,
    load_two_towers,
    sources,
)
from hive_jax.weights.components import open_components


def error_of(opener, path) -> str:
    with pytest.raises(HiveError) as caught:
        opener(str(path))
    return str(caught.value)


def folder_with(folder, *, names=(), **contents):
    """A folder of small files; keyword NAME is NAME.json."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"\x80\x02.")
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


ADAPTER = {
    "base_model_name_or_path": "google/gemma-3-270m",
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
}
# As on the hub: files, JSON files, and what the error says.
FOLDERS = {
    "lora": (
        ["adapter_model.safetensors"],
        {"adapter_config": ADAPTER},
        r"is an adapter \(LORA\) of google/gemma-3-270m.*merge_and_unload",
    ),
    "lora beside the model": (
        ["model.safetensors", "adapter_model.bin"],
        {"adapter_config": ADAPTER, "config": {"model_type": "gemma3_text"}},
        r"is an adapter \(LORA\)",
    ),
    "adapter alone": (["adapter_model.safetensors"], {}, "lacks adapter_config.json"),
    "open_clip": (
        ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"],
        {"open_clip_config": {"model_cfg": {}}, "tokenizer": {}},
        r"is an open_clip model; expected the same SigLIP.*google/siglip-\.\.\.",
    ),
    "timm": (
        ["model.safetensors"],
        {"config": {"architecture": "vit_base_patch16_siglip_224"}},
        r"the timm model 'vit_base_patch16_siglip_224'; expected the same SigLIP",
    ),
    "timm in transformers": (
        ["model.safetensors"],
        {"config": {"architecture": "resnet50", "model_type": "timm_wrapper"}},
        "the timm model 'resnet50'; expected a SigLIP or a decoder",
    ),
    "flax": (
        ["flax_model.msgpack"],
        {"config": {"model_type": "siglip_vision_model"}},
        "is a Flax file of transformers 4",
    ),
    "tensorflow": (["tf_model.h5"], {}, "is a TensorFlow file of transformers 4"),
    "gguf": (["gemma-3-270m-Q4_0.gguf"], {}, "is a GGUF file of llama.cpp"),
    "orbax": (["_METADATA", "_sharding"], {}, "is an Orbax checkpoint of another"),
    "no config": (["model.safetensors"], {}, "has tensors and no config.json"),
    "shards without an index": (
        ["model-00001-of-00002.safetensors"],
        {"config": {"model_type": "siglip_vision_model"}},
        r"has model-00001-of-00002\.safetensors; expected model\.safetensors, or",
    ),
    "empty": ([], {}, "has no config.json; expected a workdir, or a model"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_in_other_formats_are_named_in_one_line(tmp_path, kind):
    names, contents, message = FOLDERS[kind]
    folder = folder_with(tmp_path / "siglip", names=names, **contents)
    openers = [open_components, load_encoder]
    if "vision" not in str(contents):
        openers.append(load_decoder)
    for opener in openers:
        error = error_of(opener, folder)
        assert re.search(message, error), error
        assert "\n" not in error
        assert "siglip" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "is a GGUF file of llama.cpp"),
        ("flax_model.msgpack", "is a Flax file"),
        ("model.onnx", "is an ONNX graph"),
        ("weights.pt", "pickled files can run code"),
        ("open_clip_pytorch_model.bin", "pickled files can run code"),
    ],
)
def test_files_in_other_formats_are_named_in_one_line(tmp_path, name, message):
    file = folder_with(tmp_path / "here", names=[name]) / name
    error = error_of(load_encoder, file)
    assert message in error
    assert "expected a folder with config.json and model.safetensors" in error.lower()
    assert str(file) in error
    assert "\n" not in error
    # No command is printed that transformers would refuse.
    assert "python -c" not in error


def test_a_file_of_a_folder_is_answered_with_the_folder(tmp_path):
    write_folder(tmp_path / "model", hf_models.encoder(IMAGE))
    for name in ("model.safetensors", "config.json"):
        file = tmp_path / "model" / name
        assert error_of(load_encoder, file).endswith(f"give its folder, {file.parent}")
    adapter = folder_with(
        tmp_path / "lora", names=["adapter_model.safetensors"], adapter_config=ADAPTER
    )
    error = error_of(load_decoder, adapter / "adapter_model.safetensors")
    assert "is an adapter (LORA)" in error


def test_the_folder_that_holds_the_model_is_named(tmp_path):
    write_folder(tmp_path / "out/checkpoint-500", hf_models.encoder(IMAGE))
    error = error_of(load_encoder, tmp_path / "out")
    assert error.endswith(f"give {tmp_path / 'out/checkpoint-500'}")
    cache = tmp_path / "models--google--siglip-base-patch16-224"
    write_folder(cache / "snapshots/0123", hf_models.encoder(IMAGE))
    assert "give google/siglip-base-patch16-224" in error_of(load_encoder, cache)
    step = folder_with(tmp_path / "run/checkpoints/20", names=["_CHECKPOINT_METADATA"])
    assert f"give its workdir, {tmp_path / 'run'}" in error_of(load_encoder, step)


def quantized(kind, tensors):
    """Tensors of a decoder's projections as the library `kind` stores them."""
    result = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            result[name] = tensor.astype(ml_dtypes.bfloat16)
            continue
        stem, rows = name.removesuffix(".weight"), len(tensor)
        scale = np.ones((rows, 1), np.float32)
        result |= {
            "bitsandbytes": {name: tensor.astype(np.int8), f"{stem}.SCB": scale[:, 0]},
            "fp8": {
                name: tensor.astype(ml_dtypes.float8_e4m3fn),
                f"{stem}.weight_scale_inv": scale,
            },
            "gptq": {
                f"{stem}.qweight": np.zeros((rows // 8, 8), np.int32),
                f"{stem}.scales": scale,
            },
            "mlx": {name: np.zeros((rows, 2), np.uint32), f"{stem}.scales": scale},
        }[kind]
    return result


QUANTIZATION = {
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "fp8": {"quantization_config": {"quant_method": "fp8"}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize("kind", QUANTIZATION)
def test_quantized_weights_are_named_in_one_line(tmp_path, kind):
    path = write_folder(tmp_path, hf_models.decoder(GEMMA3))
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = quantized(kind, safetensors.numpy.load_file(file))
    safetensors.numpy.save_file(tensors, file)
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | QUANTIZATION[kind]))
    error = error_of(load_decoder, path)
    assert f"the weights are quantized{'' if kind == 'mlx' else f' by {kind}'}" in error
    assert "\n" not in error
    if kind != "mlx":  # the names of the tensors give the others away
        config.write_text(json.dumps(plain))
        assert "the weights are quantized, stored as" in error_of(load_decoder, path)


def test_float_weights_beside_a_quantization_config_load_with_a_line(tmp_path, caplog):
    path = write_folder(tmp_path, hf_models.decoder(GEMMA3))
    expected = load_decoder(path)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text()) | QUANTIZATION["gptq"]
    config.write_text(json.dumps(content))
    assert load_decoder(path)[0] == expected[0]
    assert "config.json says quantized by gptq, and all tensors are floats" in (
        caplog.text
    )


def pickled(model, folder, *, processor=None):
    """A folder as older versions of transformers saved it, with pytorch_model.bin."""
    import torch

    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for name in ("optimizer.pt", "training_args.bin"):  # what a trainer leaves
        (folder / name).write_bytes(b"\x80\x02.")
    if processor:
        content = json.dumps(hf_image_processor.image_processor(28, processor))
        (folder / "preprocessor_config.json").write_text(content)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<bos>"}')
    return folder


def printed_command(folder) -> str:
    error = error_of(open_components, folder)
    assert "pickled files can run code and are not read" in error
    return error.splitlines()[-1].strip()


def test_the_printed_conversion_runs_and_loses_nothing(tmp_path):
    """As a user pastes it into a shell; the path needs quotes."""
    model = randomised(siglip()[0])
    folder = pickled(model, tmp_path / "it's a $HOME", processor="hf_bilinear")
    command = printed_command(folder)
    python = Path(sys.executable).parent
    path = f"{python}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, env=environment)
    converted = str(tmp_path / "converted")
    source = sources.open_two_towers(converted)
    assert source.preprocessing == "hf_bilinear"
    assert load(converted).tokenizer.fingerprint
    _, _, params = load_two_towers(converted)
    table = model.state_dict()["text_model.embeddings.token_embedding.weight"]
    np.testing.assert_array_equal(params["txt"]["Embed_0"]["embedding"], table.numpy())
    assert not list((tmp_path / "converted").glob("*.bin"))


def run_here(command, folder, monkeypatch):
    """Runs the Python code of a printed command without a new process."""
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(folder)
    exec(code, {})  # noqa: S102  what users are told to run


def test_the_printed_conversion_keeps_decoder_tokenizer_and_head(tmp_path, monkeypatch):
    model = randomised(gemma3()[0])
    folder = pickled(model, tmp_path / "gemma")
    run_here(printed_command(folder), tmp_path, monkeypatch)
    _, params = load_decoder("converted")
    table = model.model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(params["embedder"]["input_embedding"], table)
    original = (folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "converted/tokenizer.json").read_bytes() == original
    architecture = json.loads((tmp_path / "converted/config.json").read_text())
    assert architecture["architectures"] == ["Gemma3ForCausalLM"]


def test_a_hostile_architecture_does_not_get_into_the_command(tmp_path):
    folder = pickled(vision_tower(True)[0], tmp_path / "here")
    config = json.loads((folder / "config.json").read_text())
    for bad in (["x; import os; os.remove('y')"], [5], "SiglipModel", [], None):
        content = json.dumps(config | {"architectures": bad})
        (folder / "config.json").write_text(content)
        code = shlex.split(printed_command(folder))[-1]
        assert "; transformers.AutoModel.from_pretrained(" in code
        assert "remove" not in code


def test_the_licence_is_mentioned_for_gated_models_alone(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for hub_id, mentioned in {
        "google/gemma-3-270m": True,
        "google/paligemma-3b-pt-224": True,
        "meta-llama/Llama-3.2-1B": True,
        "HuggingFaceTB/SmolLM2-135M": False,
        "google/siglip-base-patch16-224": False,
        "0.1/vision": False,
    }.items():
        error = error_of(load_encoder, hub_id)
        assert "could not be downloaded as a hub id" in error
        assert ("licence" in error) == mentioned


def test_advice_is_the_remedy_of_the_difference(tmp_path):
    path = write_folder(tmp_path, hf_models.encoder(IMAGE))
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = "vision_model.post_layernorm.weight"
    for change, advice in (
        ({name: None}, "The files are incomplete"),
        ({name: tensors[name].astype(np.float64)}, "Save the weights as float32"),
        ({"adapter.weight": tensors[name]}, "of one model, without additions"),
    ):
        changed = {k: v for k, v in (tensors | change).items() if v is not None}
        safetensors.numpy.save_file(changed, file)
        with pytest.raises(CheckpointError) as error:
            load_encoder(path)
        assert advice in str(error.value).splitlines()[-1]
        assert "again" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_a_whole_file_of_another_dtype_is_one_line(tmp_path, dtype):
    path = write_folder(tmp_path, hf_models.encoder(IMAGE))
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    changed = {name: array.astype(dtype) for name, array in tensors.items()}
    safetensors.numpy.save_file(changed, file)
    first, *lines = error_of(load_encoder, path).splitlines()
    name = {np.float64: "F64", np.int32: "I32"}[dtype]
    assert f"{len(tensors)} tensors do not fit" in first
    assert len(lines) == 2
    assert f" and {len(tensors) - 1} more are {name}; expected float32" in lines[0]
    assert lines[1].startswith("Save the weights as float32")
