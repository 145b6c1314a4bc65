import pathlib
import re

import ml_dtypes
import numpy as np
import pytest

from hive_jax.errors import CheckpointError, MissingInputError, OutputError
from hive_jax.weights.big_vision import load_npz, save_npz

GOLDEN = pathlib.Path(__file__).parent / "golden"


def shapes(tree):
    if isinstance(tree, dict):
        return {key: shapes(value) for key, value in tree.items()}
    return tree.shape


@pytest.mark.parametrize("prefix", ["params", ""])
def test_round_trip(tmp_path, prefix):
    params = {
        "img": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "t": np.float32(2),
    }
    path = tmp_path / "model.npz"
    save_npz(path, params, prefix)
    loaded = load_npz(path)
    assert shapes(loaded) == {"img": {"kernel": (2, 3)}, "half": (5,), "t": ()}
    assert loaded["half"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(loaded["half"], params["half"])
    np.testing.assert_array_equal(loaded["img"]["kernel"], params["img"]["kernel"])
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def test_names_in_the_file(tmp_path):
    save_npz(tmp_path / "model.npz", {"a": {"b": np.zeros(1)}})
    assert np.load(tmp_path / "model.npz").files == ["params/a/b"]


def test_unrolled_layers_are_stacked_in_order_of_their_number(tmp_path):
    layers = {
        f"{tower}/encoderblock_{n}/bias": np.full(2, n, ml_dtypes.bfloat16)
        for tower in ("img/Transformer", "txt/Encoder_0")
        for n in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)
    }
    np.savez(tmp_path / "model.npz", **layers)
    loaded = load_npz(tmp_path / "model.npz")
    for stacked in (loaded["img"]["Transformer"], loaded["txt"]["Encoder_0"]):
        bias = stacked["encoderblock"]["bias"]
        assert bias.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(bias[:, 0], np.arange(11))


def test_unrolled_and_stacked_golden_files_have_the_same_shapes():
    unrolled = load_npz(GOLDEN / "siglip_unrolled_params.npz")
    stacked = load_npz(GOLDEN / "siglip_scan_params.npz")
    assert shapes(unrolled) == shapes(stacked)
    with np.load(GOLDEN / "siglip_unrolled_params.npz") as file:
        third = file["params/txt/Encoder_0/encoderblock_2/MlpBlock_0/Dense_0/bias"]
    mlp = unrolled["txt"]["Encoder_0"]["encoderblock"]["MlpBlock_0"]
    np.testing.assert_array_equal(mlp["Dense_0"]["bias"][2], third)


def test_stacked_file_survives_a_round_trip(tmp_path):
    params = load_npz(GOLDEN / "siglip_scan_params.npz")
    save_npz(tmp_path / "model.npz", params)
    with (
        np.load(GOLDEN / "siglip_scan_params.npz") as before,
        np.load(tmp_path / "model.npz") as after,
    ):
        assert set(after.files) == set(before.files)
        for name in before.files:
            np.testing.assert_array_equal(after[name], before[name])


def test_optimizer_beside_the_parameters_is_left_out(tmp_path):
    arrays = {"params/a": np.ones(2), "opt/mu/a": np.zeros(2)}
    np.savez(tmp_path / "model.npz", **arrays)
    assert shapes(load_npz(tmp_path / "model.npz")) == {"a": (2,)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"T/encoderblock_0/a": np.ones(2), "T/encoderblock_2/a": np.ones(2)},
            "no T/encoderblock_1/a",
        ),
        (
            {
                "T/encoderblock_0/a": np.ones(2),
                "T/encoderblock_0/b": np.ones(2),
                "T/encoderblock_1/a": np.ones(2),
            },
            "no T/encoderblock_1/b",
        ),
        (
            {"T/encoderblock_0/a": np.ones(2), "T/encoderblock_1/a": np.ones(3)},
            "shapes",
        ),
        ({"a": np.ones(2), "a/b": np.ones(2)}, "'a/b'"),
        ({"a/b": np.ones(2), "a": np.ones(2)}, "'a'"),
        ({"a": np.array([{}], dtype=object)}, "pickled objects"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, arrays, message):
    path = tmp_path / "model.npz"
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        load_npz(path)
    assert str(path) in str(error.value)


def test_truncated_and_foreign_files(tmp_path):
    path = tmp_path / "model.npz"
    for content in (b"", b"not a zip file", _truncated_npz(tmp_path)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not an .npz file"):
            load_npz(path)


def test_damaged_array(tmp_path):
    path = tmp_path / "model.npz"
    save_npz(path, {"a": np.zeros(1000, np.float32)})
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="params/a"):
        load_npz(path)


def test_missing_file(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere\.npz"):
        load_npz(tmp_path / "nowhere.npz")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.npz"
    path.mkdir()
    with pytest.raises(OutputError, match=r"model\.npz"):
        save_npz(path, {"a": np.zeros(1)})
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def _truncated_npz(folder):
    save_npz(folder / "whole.npz", {"a": np.zeros(1000, np.float32)})
    return (folder / "whole.npz").read_bytes()[:-500]
