"""big_vision's .npz files: round trips, metadata, unstacked layers, damage."""

import dataclasses
import json
import pathlib
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.tiny_weights import DECODERS, GEMMA1, GEMMA2, GEMMA3, IMAGE, TEXT, arrays

from hive_jax.errors import CheckpointError, MissingInputError, OutputError
from hive_jax.weights import load_decoder, load_encoder, load_two_towers
from hive_jax.weights.big_vision import join_qkv, open_npz, save_npz, split_qkv

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def content(path):
    """Every array of a file as it is stored."""
    tensors, _ = open_npz(path)
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(got, expected):
    got, expected = (flatten_dict(tree, sep="/") for tree in (got, expected))
    assert set(got) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_saved_npz_opens_with_the_same_arrays_and_metadata(tmp_path):
    params = {
        "img": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "t": np.float32(2),
    }
    about = {"img": {"width": 3}, "preprocessing": "hf_bicubic"}
    save_npz(tmp_path / "model.npz", params, about)
    tensors, metadata = open_npz(tmp_path / "model.npz")
    assert metadata == about
    loaded = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    assert loaded == {
        "img/kernel": ((2, 3), "float32"),
        "half": ((5,), "bfloat16"),
        "t": ((), "float32"),
    }
    assert_same(content(tmp_path / "model.npz"), params)
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def test_qkv_is_one_array_in_big_vision_without_grouped_heads(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "llm/layers/attn/q_einsum/w": rng.normal(size=(2, 4, 6, 5)),
        "llm/layers/attn/kv_einsum/w": rng.normal(size=(2, 2, 4, 6, 5)),
    }
    joint = join_qkv(arrays)
    assert {name: a.shape for name, a in joint.items()} == {
        "llm/layers/attn/qkv_einsum/w": (2, 3, 4, 6, 5)
    }
    np.savez(tmp_path / "model.npz", **joint)
    loaded = split_qkv(open_npz(tmp_path / "model.npz")[0])
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name].read(), array)
    fewer = arrays["llm/layers/attn/kv_einsum/w"][:, :, :1]
    grouped = arrays | {"llm/layers/attn/kv_einsum/w": fewer}
    assert set(join_qkv(grouped)) == set(arrays)


def test_saved_npz_has_big_vision_names_and_one_metadata_entry(tmp_path):
    save_npz(tmp_path / "model.npz", {"a": {"b": np.zeros(1)}}, {})
    with np.load(tmp_path / "model.npz") as file:
        assert file.files == ["params/a/b", "hive_jax"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_configuration_is_saved_in_the_npz_and_read_back(tmp_path, decoder, dtype):
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = {
        name: array.astype(numpy_dtype) for name, array in arrays(decoder).items()
    }
    params = unflatten_dict(values, sep="/")
    save_npz(
        tmp_path / "one.npz", {"llm": params}, {"llm": dataclasses.asdict(decoder)}
    )
    config, loaded = load_decoder(str(tmp_path / "one.npz"))
    assert config == decoder
    assert_same(loaded, params)
    short = {name: array.astype(numpy_dtype) for name, array in flat(loaded).items()}
    save_npz(
        tmp_path / "two.npz",
        {"llm": unflatten_dict(short, sep="/")},
        {"llm": dataclasses.asdict(config)},
    )
    one, two = (content(tmp_path / name) for name in ("one.npz", "two.npz"))
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in two.items()
    }


def flat(tree):
    return flatten_dict(tree, sep="/")


@pytest.mark.parametrize("decoder", [GEMMA2, GEMMA3])
def test_npz_of_gemma2_or_3_without_metadata_needs_a_config(tmp_path, decoder):
    path = str(tmp_path / "model.npz")
    np.savez(path, **{f"llm/{name}": array for name, array in arrays(decoder).items()})
    with pytest.raises(CheckpointError, match="config= .load_decoder."):
        load_decoder(path)
    config, params = load_decoder(path, decoder)
    assert config == decoder
    assert_same(params, unflatten_dict(arrays(decoder), sep="/"))
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        load_decoder(path, GEMMA1)


def one_by_one(values):
    """Layers as big_vision stores them by default."""
    layers = {}
    for name, array in values.items():
        if "encoderblock/" not in name:
            layers[name] = array
            continue
        for number, layer in enumerate(array):
            key = name.replace("encoderblock/", f"encoderblock_{number}/")
            layers[key] = layer
    return dict(reversed(layers.items()))


@pytest.mark.parametrize("prefix", ["", "params/"])
def test_unstacked_layers_load_as_stacked_ones(tmp_path, prefix):
    values = arrays((IMAGE, TEXT))
    named = {prefix + name: array for name, array in one_by_one(values).items()}
    path = str(tmp_path / "towers.npz")
    np.savez(path, **named, **{"opt/mu/t": np.zeros(1)} if prefix else {})
    image, text, params = load_two_towers(path)
    assert (image, text) == (IMAGE, TEXT)
    assert_same(params, unflatten_dict(values, sep="/"))
    config, params = load_encoder(path)
    assert config == IMAGE
    assert_same({"img": params}, {"img": unflatten_dict(values, sep="/")["img"]})


def test_unstacked_layers_are_sorted_by_number_not_by_name(tmp_path):
    """10 comes after 9, and not after 1."""
    deep = {
        name: np.repeat(array[:1], 11, 0) if "encoderblock/" in name else array
        for name, array in arrays(IMAGE).items()
    }
    norm = "Transformer/encoderblock/LayerNorm_0/bias"
    deep[norm] = deep[norm] + np.arange(11, dtype=np.float32)[:, None]
    np.savez(tmp_path / "deep.npz", **dict(sorted(one_by_one(deep).items())))
    config, params = load_encoder(str(tmp_path / "deep.npz"))
    assert config.depth == 11
    np.testing.assert_array_equal(flat(params)[norm], deep[norm])


def test_golden_files_with_stacked_and_unstacked_layers_have_the_same_shapes():
    one, stacked = (
        load_two_towers(str(GOLDEN / f"siglip_{kind}_params.npz"))
        for kind in ("unrolled", "scan")
    )
    assert one[:-1] == stacked[:-1]
    one, stacked = flat(one[-1]), flat(stacked[-1])
    assert {name: a.shape for name, a in one.items()} == {
        name: a.shape for name, a in stacked.items()
    }


def test_golden_file_is_saved_again_byte_for_byte(tmp_path):
    golden = GOLDEN / "siglip_scan_params.npz"
    _, _, params = load_two_towers(str(golden))
    save_npz(tmp_path / "model.npz", params, {})
    with np.load(golden) as before, np.load(tmp_path / "model.npz") as after:
        assert {*after.files} == {*before.files, "hive_jax"}
        for name in before.files:
            assert after[name].tobytes() == before[name].tobytes()


LAYER = "Transformer/encoderblock_{}/LayerNorm_0/bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LAYER.format(0): None}, f"missing: {LAYER.format(0)} [24]"),
        ({LAYER.format(1): None}, f"missing: {LAYER.format(1)} [24]"),
        ({LAYER.format(1): np.ones(25)}, f"{LAYER.format(1)} is [25]; expected [24]"),
        ({LAYER.format(3): np.ones(24)}, f"unexpected: {LAYER.format(3)} [24]"),
        ({LAYER.format(10**9): np.ones(24)}, "encoderblock_1000000000/"),
        ({"pos_embedding": np.ones((1, 5, 24))}, "pos_embedding is [1, 5, 24]"),
        ({"pos_embedding": np.ones(24)}, "pos_embedding is [24]; expected 3 axes"),
        ({"embedding/kernel": np.ones(())}, "embedding/kernel"),
        ({"embedding/bias": np.array([{}], dtype=object)}, "pickled objects"),
        ({"embedding/bias": np.array(["a"] * 24)}, "embedding/bias is <U1"),
    ],
)
def test_missing_misshapen_or_pickled_arrays_raise(tmp_path, change, message):
    values = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in (one_by_one(arrays(IMAGE)) | change).items()
        if array is not None
    }
    np.savez(tmp_path / "model.npz", **values)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        load_encoder(str(tmp_path / "model.npz"))
    assert "model.npz" in str(error.value)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", "'hive_jax' is not JSON"),
        ("[]", "'hive_jax': expected an object, got []"),
        (json.dumps({"img": {"height": 5}}), "is not of this version"),
        (json.dumps({"img": [1]}), "is not of this version"),
        (
            json.dumps({"img": dataclasses.asdict(IMAGE) | {"depth": "two"}}),
            "depth is 'two'",
        ),
        (json.dumps({"img": dataclasses.asdict(IMAGE) | {"depth": 3}}), "do not fit"),
    ],
)
def test_invalid_metadata_raises(tmp_path, about, message):
    np.savez(tmp_path / "model.npz", **arrays(IMAGE), hive_jax=np.asarray(about))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_encoder(str(tmp_path / "model.npz"))


def test_flipped_bits_raise_or_do_not_change_values(tmp_path):
    """In the arrays, their headers, or the table of contents: an error, or nothing."""
    path = tmp_path / "model.npz"
    np.savez(path, a=np.arange(40, dtype=np.float32), b=np.zeros(3, np.float32))
    whole, expected, undetected = path.read_bytes(), content(path), 0
    for offset in range(len(whole)):
        for bit in (1, 64):
            flipped = bytearray(whole)
            flipped[offset] ^= bit
            path.write_bytes(flipped)
            try:
                loaded = content(path)
            except CheckpointError:
                continue
            undetected += 1
            for name in set(loaded) & set(expected):
                np.testing.assert_array_equal(loaded[name], expected[name])
    assert undetected < len(whole)  # of two flips a byte: times, attributes, names


def test_truncated_and_other_files_raise(tmp_path):
    path = tmp_path / "model.npz"
    save_npz(path, {"a": np.zeros(1000, np.float32)}, {})
    whole = path.read_bytes()
    for damaged in (b"", b"not a zip file", whole[:-1], whole[:-500], whole[:100]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not an .npz file"):
            open_npz(path)


def test_compressed_npz_loads_and_other_zip_entries_raise(tmp_path):
    np.savez_compressed(tmp_path / "small.npz", a=np.ones(1000, np.float32))
    assert_same(content(tmp_path / "small.npz"), {"a": np.ones(1000)})
    with zipfile.ZipFile(tmp_path / "small.npz", "a") as file:
        file.writestr("readme.txt", "no array")
    with pytest.raises(CheckpointError, match=r"cannot read 'readme\.txt'"):
        open_npz(tmp_path / "small.npz")


def test_missing_input_and_existing_output_raise(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere\.npz"):
        open_npz(tmp_path / "nowhere.npz")
    (tmp_path / "model.npz").write_text("mine")
    with pytest.raises(OutputError, match=r"model\.npz exists"):
        save_npz(tmp_path / "model.npz", {"a": np.zeros(1)}, {})
    assert (tmp_path / "model.npz").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
