"""Every tensor of every kind of file, damaged in every way: all damage is detected."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from helpers.tiny_weights import GEMMA1, GEMMA3, IMAGE, TEXT, arrays, write_folder

from hive_jax.errors import CheckpointError
from hive_jax.weights import hf_models, load_decoder, load_encoder, load_two_towers
from hive_jax.weights import sources as weights
from hive_jax.weights.big_vision import save_npz
from hive_jax.weights.safetensors import tensor_hash
from tools.fault_suite.mismatch import OTHER_DTYPES, mutations

# A SigLIP's projections are as wide as the tower: 4 in each of 2 layers, and the
# pooling head's.
SQUARE = {
    *(
        f"vision_model.encoder.layers.{layer}.self_attn.{name}_proj.weight"
        for layer in range(2)
        for name in ("q", "k", "v", "out")
    ),
    "vision_model.head.attention.out_proj.weight",
}
SQUARE_TEXT = {
    f"text_model.encoder.layers.0.self_attn.{name}_proj.weight"
    for name in ("q", "k", "v", "out")
}


def sweep(tensors, names, write, load):
    """Damages each tensor in each way; `load` should refuse the file and name it.
    Where it is a function that only opens, nothing at all was read.

    Returns:
      how many files were tried, and what was not detected: pairs (damage, name).
    """
    count, undetected = 0, set()
    for name, damage, damaged in mutations(tensors, names):
        count += 1
        write(damaged)
        try:
            load()
        except CheckpointError as error:
            assert name in str(error), (damage, error)
        else:
            undetected.add((damage, name))
    return count, undetected


def cases(tensors, names):
    """How many files `sweep` tries."""
    matrices = sum(tensors[name].ndim > 1 for name in names)
    return (3 + len(OTHER_DTYPES)) * len(names) + matrices


def folder_of(layout, path):
    """A folder, its tensors, and the function that writes others into it."""
    write_folder(path, layout)
    file = path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    return str(path), tensors, lambda new: safetensors.numpy.save_file(new, file)


def test_damaged_decoder_tensors_raise(tmp_path):
    path, tensors, write = folder_of(hf_models.decoder(GEMMA3), tmp_path)
    assert not any(len({*t.shape}) == 1 for t in tensors.values() if t.ndim > 1)
    count, undetected = sweep(
        tensors, tensors, write, lambda: weights.open_decoder(path)
    )
    assert count == cases(tensors, tensors) == 41 * 5 + 22
    assert not undetected


def test_damaged_image_tower_tensors_raise_except_transposed_squares(tmp_path):
    path, tensors, write = folder_of(hf_models.two_towers(IMAGE, TEXT), tmp_path)
    vision = [name for name in tensors if name.startswith("vision_model.")]
    count, undetected = sweep(tensors, vision, write, lambda: load_encoder(path))
    assert count == cases(tensors, vision) == 48 * 5 + 19
    assert undetected == {("transposed", name) for name in SQUARE}


def test_damaged_two_tower_tensors_raise_except_transposed_squares(tmp_path):
    path, tensors, write = folder_of(hf_models.two_towers(IMAGE, TEXT), tmp_path)
    count, undetected = sweep(
        tensors, tensors, write, lambda: weights.open_two_towers(path)
    )
    assert count == cases(tensors, tensors) == 72 * 5 + 28
    assert undetected == {("transposed", name) for name in SQUARE | SQUARE_TEXT}


def test_hashes_detect_transposed_square_matrices_too(tmp_path):
    """The hashes show what shapes cannot."""
    path, tensors, write = folder_of(hf_models.two_towers(IMAGE, TEXT), tmp_path)
    write_hashes(tmp_path, tensors)
    load_two_towers(path)
    count, undetected = sweep(tensors, tensors, write, lambda: load_two_towers(path))
    assert count == cases(tensors, tensors)
    assert not undetected


def write_hashes(folder, tensors):
    hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
    (folder / "hive_export.json").write_text(json.dumps({"tensors": hashes}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hashes_detect_a_single_changed_bit(tmp_path, dtype):
    """One bit of each tensor; without hashes they are values like others."""
    write_folder(tmp_path, hf_models.decoder(GEMMA3), dtype)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    for name, tensor in tensors.items():
        changed = np.array(tensor)
        changed.view(np.uint8).reshape(-1)[-2] ^= 1
        safetensors.numpy.save_file({**tensors, name: changed}, file)
        load_decoder(str(tmp_path))
        write_hashes(tmp_path, tensors)
        with pytest.raises(CheckpointError, match="does not have the hash") as error:
            load_decoder(str(tmp_path))
        assert repr(name) in str(error.value)
        (tmp_path / "hive_export.json").unlink()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_non_finite_values_raise(tmp_path, dtype, value):
    """Each tensor alone, and all that are damaged in one message."""
    write_folder(tmp_path, hf_models.decoder(GEMMA3), dtype)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    changed = {name: np.array(tensor) for name, tensor in tensors.items()}
    for name, tensor in changed.items():
        tensor.reshape(-1)[tensor.size // 2] = value
        safetensors.numpy.save_file({**tensors, name: tensor}, file)
        with pytest.raises(CheckpointError, match="not finite") as error:
            load_decoder(str(tmp_path))
        assert repr(name) in str(error.value)
    safetensors.numpy.save_file(changed, file)
    with pytest.raises(CheckpointError) as error:
        load_decoder(str(tmp_path))
    assert all(repr(name) in str(error.value) for name in tensors)


def open_gemma3_without_metadata(path):
    return weights.open_decoder(path, GEMMA3)


@pytest.mark.parametrize(
    ("branch", "config", "has_metadata", "open_component"),
    [
        ("img", IMAGE, True, weights.open_encoder),
        ("img", IMAGE, False, weights.open_encoder),
        ("llm", GEMMA1, True, weights.open_decoder),
        ("llm", GEMMA1, False, weights.open_decoder),
        ("llm", GEMMA3, True, weights.open_decoder),
        ("llm", GEMMA3, False, open_gemma3_without_metadata),
    ],
)
def test_damaged_npz_arrays_raise(
    tmp_path, branch, config, has_metadata, open_component
):
    """Where nothing says what the file holds, a larger vocabulary is as good."""
    path = tmp_path / "model.npz"
    about = {branch: dataclasses.asdict(config)} if has_metadata else {}
    tensors = {f"{branch}/{name}": array for name, array in arrays(config).items()}

    def write(new):
        path.unlink(missing_ok=True)
        save_npz(path, new, about) if has_metadata else np.savez(path, **new)

    write(tensors)
    open_component(str(path))
    count, undetected = sweep(
        tensors, tensors, write, lambda: open_component(str(path))
    )
    assert count == cases(tensors, tensors)
    undetectable = {("resized", "llm/embedder/input_embedding")}
    assert undetected == (
        undetectable if config is GEMMA1 and not has_metadata else set()
    )
