"""Checkpoints that survive kills, full disks and damaged files."""

import os

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers.checkpoints import abstract, assert_same, make_state, save_steps

from hive_jax.errors import (
    CheckpointError,
    MissingInputError,
    OutputError,
)
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.integrity import fingerprint
from hive_jax.training.checkpointing.manager import Checkpoints

# Orbax abandons the other reads and writes when one of them fails; Python complains
# about each of these coroutines when it collects it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_round_trip_is_bit_equal_and_keeps_the_newest(tmp_path):
    state = save_steps(tmp_path, [1, 2, 5, 9], keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["5", "9"]
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == 9
        restored, meta = checkpoints.restore(abstract(state))
        assert_same(restored, state)
        assert meta == checkpoints.read_meta()
        assert (meta["seed"], meta["step"]) == (9, 9)
        assert meta["fingerprints"] == fingerprint(state)
        older, _ = checkpoints.restore(abstract(state), step=5)
        assert_same(older, make_state(5, seed=5))


def test_donated_state_is_saved_as_it_was(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.tree.map(jnp.copy, make_state(0))
    with Checkpoints(str(tmp_path)) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state, {})
            state = advance(state)
        expected = make_state(0)
        for _ in range(3):
            expected = advance(expected)
        restored, _ = checkpoints.restore(abstract(expected))
    assert_same(restored, expected)


def test_empty_workdir_has_no_checkpoint(tmp_path):
    for read_only in [False, True]:
        with Checkpoints(str(tmp_path / "w"), read_only=read_only) as checkpoints:
            assert checkpoints.latest_step() is None
            assert checkpoints.restore(abstract(make_state())) is None
            for action in [
                checkpoints.read_meta,
                lambda: checkpoints.restore_params(abstract(make_state().params)),
                lambda: checkpoints.restore(abstract(make_state()), step=4),
            ]:
                with pytest.raises(MissingInputError, match=str(tmp_path)):
                    action()


def test_read_only_creates_nothing(tmp_path):
    with Checkpoints(str(tmp_path / "w"), read_only=True):
        pass
    assert not (tmp_path / "w").exists()


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Checkpoints(str(tmp_path / "file"))


def test_step_is_never_overwritten(tmp_path):
    state = save_steps(tmp_path, [1, 2])
    with Checkpoints(str(tmp_path)) as checkpoints:
        with pytest.raises(CheckpointError, match="2 exists already"):
            checkpoints.save(2, make_state(2, seed=99), {})
        checkpoints.restore(abstract(state))
        checkpoints.save(2, state, {})  # resumed and stopped at once: nothing to do
        restored, _ = checkpoints.restore(abstract(state))
    assert_same(restored, state)


def test_parameters_alone_whatever_the_optimizer(tmp_path):
    state = save_steps(tmp_path, [3])
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(abstract(state.params))
        assert_same(params, state.params)
        with pytest.raises(CheckpointError, match="params/extra/bias: expected"):
            checkpoints.restore_params(
                abstract(state.params | {"extra": {"bias": jnp.zeros(2)}})
            )


def test_all_differences_are_listed_and_nothing_is_restored(tmp_path):
    state = save_steps(tmp_path, [1, 2])
    other = state.replace(
        params={
            "image": {"kernel": jnp.zeros((64, 32))},
            "head": {"scale": jnp.zeros((8,), jnp.float32)},
        },
        step=jnp.zeros((2,), jnp.int32),
        opt_state=optax.sgd(0.1).init(state.params),
    )
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    with (
        Checkpoints(str(tmp_path)) as checkpoints,
        pytest.raises(CheckpointError) as caught,
    ):
        checkpoints.restore(abstract(other))
    message = str(caught.value)
    for line in [
        "params/head/scale: expected float32[8], got bfloat16[8]",
        "params/image/kernel: expected float32[64, 32], missing in checkpoint 2",
        "params/img/kernel: unexpected float32[64, 32] in checkpoint 2",
        "step: expected int32[2], got int32[]",
        "inner_state/0/mu/img/kernel: unexpected float32[64, 32] in checkpoint 2",
    ]:
        assert line in message
    assert "7 leaves differ" in message
    assert sorted(os.listdir(tmp_path / "checkpoints")) == before


def test_sharding_that_does_not_divide_is_not_damage(tmp_path):
    state = save_steps(tmp_path, [1])
    with (
        Checkpoints(str(tmp_path)) as checkpoints,
        pytest.raises(CheckpointError, match="params/img/kernel: "),
    ):
        checkpoints.restore(abstract(state, (None, "data"), 3))
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_restore_on_another_mesh_is_bit_equal(tmp_path, devices):
    state = make_state(1)
    request = abstract(state, ("data",), 8)
    sharded = jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), *(state, request)
    )
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, sharded, {})
        request = abstract(state, (None, "data"), devices)
        restored, _ = checkpoints.restore(request)
    assert_same(restored, state)
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(request)):
        assert leaf.sharding == like.sharding


def test_names_in_the_state_are_the_names_in_meta(tmp_path):
    state = save_steps(tmp_path, [1])
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    assert meta["leaves"] == trees.describe(state)
    assert "params/img/kernel" in meta["leaves"]
