"""Folders and files that we write: complete or not there, and read back bit by bit."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.tiny_weights import (
    DECODERS,
    GEMMA2,
    GEMMA3,
    IMAGE,
    LLAMA,
    QWEN2,
    TEXT,
    arrays,
    hive_config,
    stored,
    write_folder,
)

from hive_jax.errors import CheckpointError, ConfigError, OutputError
from hive_jax.weights import hf_models, load_encoder, save_encoder, sources
from hive_jax.weights.mapping import param_shapes

FORMATS = pytest.mark.parametrize("format", ["huggingface", "big_vision"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def params():
    return unflatten_dict(arrays(IMAGE), sep="/")


DEPTH = {"connections": (), "feature_depth": 1}
OWN = {"image_kv": "own", "projector": "mlp", "image_rope": False}
LAYOUTS = {
    "encoder": (hf_models.encoder(IMAGE), sources.open_encoder),
    "two towers": (hf_models.two_towers(IMAGE, TEXT), sources.open_two_towers),
    **{
        name: (hf_models.decoder(config), sources.open_decoder)
        for name, config in DECODERS.items()
    },
    "penultimate": (
        hf_models.hive(hive_config("cascaded", **DEPTH)),
        sources.open_hive,
    ),
    "vlm": (hf_models.vlm(hive_config("self_attention"), 60), sources.open_hive),
    "hive": (hf_models.hive(hive_config("hive")), sources.open_hive),
    "vlm of untied llama": (
        hf_models.vlm(hive_config("self_attention", LLAMA), 60),
        sources.open_hive,
    ),
    "hive of untied qwen2": (
        hf_models.hive(hive_config("hive", QWEN2)),
        sources.open_hive,
    ),
    "cascaded": (hf_models.hive(hive_config("cascaded", GEMMA2)), sources.open_hive),
    "joint": (hf_models.hive(hive_config("joint", **OWN)), sources.open_hive),
    "joint of qwen2": (
        hf_models.hive(hive_config("joint", QWEN2, **OWN)),
        sources.open_hive,
    ),
}


@DTYPES
@pytest.mark.parametrize(
    "options", [{}, {"max_shard_bytes": 9000}], ids=["one", "many"]
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_written_folders_load_bit_for_bit(tmp_path, name, options, dtype):
    layout, open_component = LAYOUTS[name]
    path = write_folder(tmp_path, layout, dtype, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == bool(options)
    source = open_component(path)
    assert param_shapes(source.config) == param_shapes(layout.model)
    if not isinstance(layout.model, tuple) and hasattr(layout.model, "fusion"):
        expected = layout.model.with_defaults()
    else:
        expected = layout.model
    assert source.config == expected
    assert not source.left_out
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    got, reference = dict(source.leaves()), arrays(layout.model)
    assert set(got) == set(reference)
    for key, array in reference.items():
        assert got[key].dtype == np.float32
        np.testing.assert_array_equal(got[key], array.astype(numpy_dtype), strict=False)


def test_encoder_and_decoder_load_from_whole_models(tmp_path):
    """The towers in "vlm" and "hive" folders, each for itself."""
    for fusion in ("self_attention", "hive"):
        config = hive_config(fusion)
        layout = (
            hf_models.vlm(config, 60)
            if fusion == "self_attention"
            else hf_models.hive(config)
        )
        path = write_folder(tmp_path / fusion, layout)
        whole = arrays(config)
        for branch, source in (
            ("img/", sources.open_encoder(path)),
            ("llm/", sources.open_decoder(path)),
        ):
            for name, array in source.leaves():
                np.testing.assert_array_equal(array, whole[branch + name])
        assert source.config == GEMMA3


def test_shard_index_lists_every_tensor_and_the_total_size(tmp_path):
    write_folder(tmp_path, hf_models.decoder(GEMMA3), "bfloat16", max_shard_bytes=9000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert files == [
        f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)
    ]
    tensors = stored(tmp_path)
    assert set(index["weight_map"]) == set(tensors)
    total = sum(len(content) for _, _, content in tensors.values())
    assert index["metadata"]["total_size"] == total
    assert all((tmp_path / file).stat().st_size < 9000 + 2000 for file in files)


@DTYPES
@FORMATS
def test_saved_encoder_loads_with_its_values_and_preprocessing(tmp_path, format, dtype):
    path = tmp_path / "new" / "encoder.npz"
    if format == "big_vision":
        path.parent.mkdir()
    save_encoder(path, IMAGE, params(), format, dtype, "hf_bilinear")
    assert [file.name for file in path.parent.iterdir()] == ["encoder.npz"]
    config, got = load_encoder(str(path))
    assert config == IMAGE
    assert sources.open_encoder(str(path)).preprocessing == "hf_bilinear"
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for name, array in flatten_dict(got, sep="/").items():
        reference = arrays(IMAGE)[name].astype(numpy_dtype)
        np.testing.assert_array_equal(array, reference)


@FORMATS
def test_save_encoder_never_overwrites(tmp_path, format):
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("mine")
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    for path in (file, folder, link):
        with pytest.raises(OutputError, match="exists"):
            save_encoder(path, IMAGE, params(), format)
    assert file.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [file, folder, link]
    assert not list(folder.iterdir())


@FORMATS
def test_save_encoder_rejects_wrong_params_and_options(tmp_path, format):
    path, good = tmp_path / "encoder", params()
    more = {**good, "head": {"kernel": np.zeros((2, 2))}}
    less = {name: leaf for name, leaf in good.items() if name != "pos_embedding"}
    other = {**good, "pos_embedding": np.zeros((1, 9, 24))}
    large = {**good, "pos_embedding": good["pos_embedding"] * 1e6}
    nan = {**good, "pos_embedding": good["pos_embedding"] * np.nan}
    for changed, dtype, message in (
        (more, "float32", r"head/kernel: \(2, 2\); expected nothing"),
        (less, "float32", r"pos_embedding: missing; expected \(1, 4, 24\)"),
        (other, "float32", r"pos_embedding: \(1, 9, 24\); expected \(1, 4, 24\)"),
        (large, "float16", "position|pos_embedding: not finite as float16"),
        (nan, "float32", "not finite as float32"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_encoder(path, IMAGE, changed, format, dtype)
    for options, message in (
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"preprocessing": ""}, "preprocessing is ''"),
    ):
        with pytest.raises(ConfigError, match=message):
            save_encoder(path, IMAGE, good, format, **options)
    with pytest.raises(ConfigError, match="'bv_bilinear'; expected .*'huggingface'"):
        save_encoder(path, IMAGE, good, preprocessing="bv_bilinear")
    with pytest.raises(ConfigError, match="format is 'onnx'"):
        save_encoder(path, IMAGE, good, "onnx")
    assert not list(tmp_path.iterdir())


# In processes of their own, which kill themselves and set limits on themselves.
START = """
import os, resource, sys
sys.path.insert(0, "tests")
from flax.traverse_util import unflatten_dict
from helpers.tiny_weights import IMAGE, arrays
from hive_jax.errors import OutputError
from hive_jax.weights import save_encoder

folder, params = sys.argv[1], unflatten_dict(arrays(IMAGE), sep="/")

def save(format):
    save_encoder(f"{folder}/encoder", IMAGE, params, format)
"""
KILLED = """
def watch(event, args):
    if event in ("open", "os.mkdir", "os.chmod", "os.rename") and folder in str(args):
        print(event, os.path.exists(f"{folder}/encoder"), flush=True)
    if event == sys.argv[3]:
        os.kill(os.getpid(), 9)

sys.addaudithook(watch)
save(sys.argv[2])
"""
OUT_OF_ROOM = """
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for format in ("huggingface", "big_vision"):
    for size in (100, 5000, 60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            save(format)
        except OutputError as error:
            message = error
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(str(message).replace(folder, ""))
        assert not os.listdir(folder)
"""


def in_its_own_process(script, *arguments):
    command = [sys.executable, "-W", "error", "-c", START + script, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("format", "event"), [("huggingface", "os.chmod"), ("big_vision", "os.rename")]
)
def test_save_encoder_killed_while_writing_leaves_no_incomplete_output(
    tmp_path, format, event
):
    """With tensors on the disk: nothing under the name, at no step, and the next
    attempt is not in the way of what is left."""
    done = in_its_own_process(KILLED, str(tmp_path), format, event)
    assert done.returncode == -9, done.stderr
    steps = done.stdout.splitlines()
    assert len(steps) > 2
    assert all(step.endswith("False") for step in steps)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp")
    save_encoder(tmp_path / "encoder", IMAGE, params(), format)
    assert load_encoder(str(tmp_path / "encoder"))[0] == IMAGE


def test_save_encoder_on_a_full_disk_raises_and_leaves_nothing(tmp_path):
    """Nothing is left, and the error says what could not be written."""
    done = in_its_own_process(OUT_OF_ROOM, str(tmp_path))
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 6
    assert all(line.startswith("cannot write") for line in messages), messages
