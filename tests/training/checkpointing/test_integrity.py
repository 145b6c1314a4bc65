"""Fingerprints: equal for every sharding, different for every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hive_jax.errors import CheckpointError
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.integrity import (
    fingerprint,
    fingerprint_arrays,
    inspect_leaves,
)

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool"]


def _random(dtype, shape=(16, 24)):
    words = np.random.default_rng(0).integers(0, 100, shape)
    return jnp.asarray(words % 2 if dtype == "bool" else words).astype(dtype)


def test_many_sharded_leaves():
    """More programs with collectives than XLA's CPU devices have threads for."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    placed = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    whole = {f"{i}": np.full((8 + 2 * (i % 5), 16), i, np.float32) for i in range(300)}
    sharded = jax.device_put(whole, placed)
    assert fingerprint(sharded) == fingerprint(whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_for_every_sharding(dtype):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    array = _random(dtype)
    expected = fingerprint({"x": array})
    for spec in [
        (),
        ("data",),
        (None, "model"),
        ("model", "data"),
        (("data", "model"),),
    ]:
        sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        assert fingerprint({"x": sharded}) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_flipped_bit_is_seen(dtype):
    array = np.asarray(_random(dtype, (7, 5)))
    unsigned = np.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = 8 * array.dtype.itemsize
    generator = np.random.default_rng(1)
    flipped = {"original": array}
    for trial in range(400):
        damaged = array.view(unsigned).copy()
        damaged.flat[generator.integers(array.size)] ^= unsigned.type(1 << trial % bits)
        flipped[f"{trial}"] = damaged.view(array.dtype)
    stacked = np.stack(list(flipped.values()))
    prints = jax.vmap(lambda x: fingerprint_arrays({"x": x})["x"])(stacked)
    prints = np.asarray(prints)[:, :2]
    # Each of the two sums sees a change of a single element on its own.
    assert (prints[1:] != prints[0]).all()


def test_moved_values_and_pairs_of_sign_bits_are_seen():
    array = _random("float32")
    changed = [
        array,
        array[np.r_[1, 0, 2:16]],
        array[:, ::-1],
        array.reshape(24, 16),
        array.at[3, 4].multiply(-1).at[5, 6].multiply(-1),
        array.at[3:5].set(0),
    ]
    assert len({fingerprint({"x": x})["x"] for x in changed}) == len(changed)


def test_constant_columns_of_transposed_arrays_differ():
    array = _random("float32", (6, 6))
    assert fingerprint({"x": array}) != fingerprint({"x": array.T})


def test_names_scalars_and_numpy_leaves():
    tree = {"a": {"b": np.float32(1.5)}, "c": [jnp.int32(3), True, np.zeros(0)]}
    prints = fingerprint(tree)
    assert list(prints) == ["a/b", "c/0", "c/1", "c/2"]
    assert all(len(text) == 16 for text in prints.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_leaves_with_nan_or_infinity_are_named(dtype):
    good = np.ones((3, 5), dtype)
    leaves = {"good": good, "largest": np.full(2, jnp.finfo(dtype).max)}
    leaves |= {"count": np.int32(-1), "mask": np.ones(3, bool), "none": good[:0]}
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = good.copy()
        spoilt[2, 4] = bad
        prints, not_finite = inspect_leaves(leaves | {"spoilt": spoilt})
        assert not_finite == ["spoilt"]
        assert prints["good"] == fingerprint({"x": good})["x"]


def test_not_a_number_keeps_its_bits():
    quiet = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    first, second = (fingerprint({"x": quiet[i : i + 1]})["x"] for i in range(2))
    assert first != second


def test_known_value():
    """A checkpoint written today must still be verified by later versions."""
    array = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    assert fingerprint({"x": array})["x"] == "1de00000ad551fd7"


def test_compare_lists_all_differences():
    expected = {"a": jnp.zeros((4, 8)), "b": jnp.zeros(2), "c": jnp.zeros(3), "d": 1}
    stored = {"a": jnp.zeros((4, 9)), "b": jnp.zeros(2, jnp.int32), "e": jnp.zeros(3)}
    assert trees.compare(expected, stored, "checkpoint 7") == [
        "a: expected float32[4, 8], got float32[4, 9]",
        "b: expected float32[2], got int32[2]",
        "c: expected float32[3], missing in checkpoint 7",
        "d: expected int32[], missing in checkpoint 7",
        "e: unexpected float32[3] in checkpoint 7",
    ]
    assert trees.compare(expected, trees.describe(expected), "itself") == []


def test_long_lists_are_cut_with_a_total():
    expected = {f"layer_{i}": jnp.zeros(2) for i in range(30)}
    with pytest.raises(CheckpointError) as caught:
        trees.require_equal(expected, {}, "checkpoint 7")
    assert "30 leaves differ" in str(caught.value)
    assert "and 10 more" in str(caught.value)
    assert str(caught.value).count("missing") == 20


def test_unflatten_inverts_flatten():
    tree = {"a": [jnp.zeros(2), None], "b": {"c": jnp.ones(3)}}
    again = trees.unflatten(tree, trees.flatten(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
