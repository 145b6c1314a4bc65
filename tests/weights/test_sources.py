"""Files and folders that are damaged, incomplete, hostile, or of another model."""

import json

import numpy as np
import pytest
from helpers.tiny_weights import GEMMA1, IMAGE, write_folder

from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.weights import hf_models, load_decoder, load_encoder, load_two_towers

ENCODER = hf_models.encoder(IMAGE)
INDEX = "model.safetensors.index.json"


def assert_raises(load, path, message, error=CheckpointError):
    """The error is a message for people, and names the file or folder."""
    with pytest.raises(error) as caught:
        load(str(path))
    assert message in str(caught.value)
    assert path.name in str(caught.value)


def test_truncated_or_garbage_file_raises(tmp_path):
    write_folder(tmp_path, ENCODER)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for length in (0, 5, 8, header - 1, header, header + 1, len(content) - 1):
        file.write_bytes(content[:length])
        assert_raises(load_encoder, tmp_path, "damaged or incomplete")
    for garbage in (b"\0" * 100, b"not a safetensors file, but long enough"):
        file.write_bytes(garbage)
        assert_raises(load_encoder, tmp_path, "damaged or incomplete")
    file.write_bytes(content + b"\0")
    assert_raises(load_encoder, tmp_path, "damaged or incomplete")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert_raises(load_encoder, tmp_path, "git lfs pull")


@pytest.mark.parametrize("bit", [1, 16, 128])
def test_flipped_header_bits_raise_or_do_not_change_values(tmp_path, bit):
    """Another name, shape, dtype or offset: rejected, or the values are the same."""
    path = write_folder(tmp_path, hf_models.decoder(GEMMA1))
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    _, params = load_decoder(path)
    expected = params["embedder"]["input_embedding"].sum()
    header = 8 + int.from_bytes(content[:8], "little")
    undetected = 0
    for offset in range(bit % 7, header, 7):
        flipped = bytearray(content)
        flipped[offset] ^= bit
        file.write_bytes(flipped)
        try:
            _, params = load_decoder(path)
        except CheckpointError:
            continue
        undetected += 1
        assert params["embedder"]["input_embedding"].sum() == expected
    assert undetected < 10  # spaces, and the note that the file is PyTorch's


def test_missing_shards_and_wrong_shard_indices_raise(tmp_path):
    path = write_folder(tmp_path, ENCODER, max_shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) == 4
    assert load_encoder(path)[0] == IMAGE

    def changed(weight_map):
        text = json.dumps({**index, "weight_map": weight_map})
        (tmp_path / INDEX).write_text(text)
        return tmp_path

    name, where = next(iter(index["weight_map"].items()))
    rest = {key: file for key, file in index["weight_map"].items() if key != name}
    assert_raises(load_encoder, changed(rest), f"{name}: in {where}, not in the index")
    more = {**index["weight_map"], "more": where}
    assert_raises(load_encoder, changed(more), f"more: not in {where}")
    other = {**rest, name: files[-1]}
    assert_raises(load_encoder, changed(other), f"{name}: not in {files[-1]}")
    for outside in ("../model.safetensors", "/etc/passwd", "a/b"):
        bad = {**rest, name: outside}
        assert_raises(load_encoder, changed(bad), "are not file names in its folder")
    for bad in ([], {}, None, 5):
        assert_raises(load_encoder, changed(bad), "has no weight_map")
    (tmp_path / INDEX).write_text("{")
    assert_raises(load_encoder, tmp_path, "is not JSON")
    changed(index["weight_map"])
    (tmp_path / files[1]).unlink()
    message = f"lacks 1 of 4 shards: {files[1]}"
    assert_raises(load_encoder, tmp_path, message, MissingInputError)


def test_missing_path_config_or_tensors_raise(tmp_path):
    absent = tmp_path / "absent"
    for load in (load_encoder, load_decoder, load_two_towers):
        assert_raises(load, absent, "no such file or folder", MissingInputError)
    assert_raises(load_encoder, tmp_path, "config.json", MissingInputError)
    write_folder(tmp_path, ENCODER)
    (tmp_path / "model.safetensors").unlink()
    assert_raises(load_encoder, tmp_path, "holds neither", MissingInputError)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", '"config"', "{}"])
def test_malformed_config_json_raises(tmp_path, content):
    write_folder(tmp_path, ENCODER)
    (tmp_path / "config.json").write_text(content)
    for load in (load_encoder, load_decoder, load_two_towers):
        assert_raises(
            load, tmp_path, "expected" if content not in ("", "{") else "not JSON"
        )


def test_malformed_hive_export_json_raises(tmp_path):
    write_folder(tmp_path, ENCODER)
    for content in ("{", "[]", "{}", '{"tensors": []}'):
        (tmp_path / "hive_export.json").write_text(content)
        assert_raises(load_encoder, tmp_path, "hive_export.json")


HUB = "models--tiny--encoder"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with one revision of one model, and no network."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    revision = "0123456789" * 4
    write_folder(tmp_path / HUB / "snapshots" / revision, ENCODER)
    (tmp_path / HUB / "refs").mkdir()
    (tmp_path / HUB / "refs" / "main").write_text(revision)
    return revision


def test_cached_hub_id_loads_by_name_and_revision(hub):
    expected = load_encoder("tiny/encoder")
    assert expected[0] == IMAGE
    for revision in ("main", hub):
        config, params = load_encoder(f"tiny/encoder@{revision}")
        assert config == IMAGE
        np.testing.assert_array_equal(
            params["pos_embedding"], expected[1]["pos_embedding"]
        )


@pytest.mark.parametrize(
    "path", ["tiny/other", "tiny/encoder@v2", "tiny/encoder@" + "f" * 40]
)
def test_unknown_hub_id_or_revision_raises(hub, path):
    with pytest.raises(
        MissingInputError, match="not be downloaded as a hub id"
    ) as error:
        load_encoder(path)
    assert path in str(error.value)


def test_path_of_an_npz_file_is_not_taken_for_a_hub_id(hub):
    with pytest.raises(
        MissingInputError, match=r"workdir/encoder\.npz: no such file or folder"
    ):
        load_encoder("workdir/encoder.npz")


def test_incomplete_download_raises(tmp_path, hub):
    (tmp_path / HUB / "snapshots" / hub / "model.safetensors").unlink()
    with pytest.raises(MissingInputError, match="holds neither"):
        load_encoder("tiny/encoder")


def test_unknown_built_in_weights_are_an_error_with_the_known_ones():
    with pytest.raises(MissingInputError) as error:
        load_encoder("builtin:nope")
    known = "builtin:tabletop_llm, builtin:tabletop_siglip"
    assert str(error.value) == f"builtin:nope is not built in; expected one of {known}"
