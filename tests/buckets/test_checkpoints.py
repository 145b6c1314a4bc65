"""Steps of a run in a bucket: the same bits, whole or not at all."""

import jax
import numpy as np
import pytest
from training.checkpointing.test_manager import abstract, assert_same, make_state

from hive_jax.buckets import as_path, filesystem, list_names
from hive_jax.errors import CheckpointError, OutputError
from hive_jax.training.checkpointing.manager import Checkpoints

# As in tests/training/checkpointing/test_failures.py.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def save_steps(workdir, steps, keep=3):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step, seed=step), {"seed": step})
        checkpoints.wait()


def test_checkpoints_are_bit_equal_sharded_or_not(folder):
    save_steps(folder, [1, 2, 5, 9], keep=2)
    assert list_names(f"{folder}/checkpoints") == ["5", "9"]
    expected = make_state(9, seed=9)
    with Checkpoints(folder, read_only=True) as checkpoints:
        for request in (abstract(expected), abstract(expected, ("data",), devices=2)):
            restored, meta = checkpoints.restore(request)
            assert_same(restored, expected)
        assert (meta["seed"], meta["step"]) == (9, 9)
        params, _ = checkpoints.restore_params(abstract(expected).params)
        assert_same(params, expected.params)


def test_donated_state_is_saved_as_it_was(folder):
    state = make_state(1)
    big = jax.numpy.arange(4_000_000, dtype=np.float32)
    state = state.replace(params=state.params | {"big": big})
    expected = np.array(big, copy=True)
    update = jax.jit(lambda x: -x, donate_argnums=0)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            big = update(big)
        restored, _ = checkpoints.restore(abstract(state))
    assert np.array_equal(restored.params["big"], expected)


def test_unfinished_save_does_not_count_and_is_removed(folder):
    save_steps(folder, [1, 2])
    (as_path(folder) / "checkpoints" / "2" / "meta.json").unlink()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 1
    with Checkpoints(folder):
        assert list_names(f"{folder}/checkpoints") == ["1"]


def test_random_damage_never_gives_wrong_values(folder):
    """Any one damaged object: the same values anyway, or the older step."""
    save_steps(folder, [1, 2])
    expected = {step: make_state(step, seed=step) for step in [1, 2]}
    client, outcomes = filesystem(folder), []
    generator = np.random.default_rng(0)
    for number, name in enumerate(sorted(client.find(f"{folder}/checkpoints/2"))):
        content = client.cat_file(name)
        if number % 3 == 0:
            position = int(generator.integers(8 * len(content)))
            changed = bytearray(content)
            changed[position // 8] ^= 1 << position % 8
            client.pipe_file(name, bytes(changed))
        elif number % 3 == 1:
            client.pipe_file(name, content[: len(content) // 2])
        else:
            client.rm(name)
        # Read-only, so that the step stays in its place for the next damage.
        with Checkpoints(folder, read_only=True) as checkpoints:
            restored, meta = checkpoints.restore(abstract(expected[2]))
        assert_same(restored, expected[meta["step"]])
        outcomes.append(meta["step"])
        client.pipe_file(name, content)
    assert outcomes.count(1) >= 3


def test_damaged_step_is_set_aside(folder, caplog):
    save_steps(folder, [1, 2])
    client = filesystem(folder)
    name = f"{folder}/checkpoints/2/params/img/kernel/c/0/0"
    content = client.cat_file(name)
    client.pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
    with Checkpoints(folder) as checkpoints:
        restored, _ = checkpoints.restore(abstract(make_state(2)))
        assert_same(restored, make_state(1, seed=1))
        assert (
            "checkpoint 2 is damaged: wrong values in params/img/kernel" in caplog.text
        )
        names = list_names(f"{folder}/checkpoints")
        assert names[0] == "1" and names[1].startswith("2.damaged-")
        checkpoints.save(2, make_state(2, seed=2), {})
        checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_runs_can_be_copied_out_but_not_in(folder, tmp_path):
    save_steps(folder, [1, 2])
    filesystem(folder).get(folder, str(tmp_path / "out"), recursive=True)
    with Checkpoints(str(tmp_path / "out")) as checkpoints:
        restored, _ = checkpoints.restore(abstract(make_state(2)))
        assert_same(restored, make_state(2, seed=2))
        checkpoints.save(3, make_state(3, seed=3), {})
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
    save_steps(str(tmp_path / "local"), [1])
    filesystem(folder).put(str(tmp_path / "local"), f"{folder}/in", recursive=True)
    with pytest.raises(CheckpointError, match="was saved in a local folder"):
        Checkpoints(f"{folder}/in")


def test_failed_saves_are_reported(servers, monkeypatch):
    folder = f"{servers['gs']}/failing"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()
        # TensorStore's answer to objects of a bucket that is gone.
        monkeypatch.setattr(checkpoints._store, "_directory", as_path(folder + "x"))
        monkeypatch.setattr(
            type(checkpoints._store), "_spec", lambda *_: _missing_bucket()
        )
        for step in (2, 3):
            checkpoints.save(step, make_state(step), {})
            assert not checkpoints.check(wait=True)
        with pytest.raises(OutputError, match="3 checkpoint.s. in a row"):
            checkpoints.save(4, make_state(4), {})
            checkpoints.check(wait=True)


def _missing_bucket():
    store = {"driver": "gcs", "bucket": "nowhere", "path": "x/"}
    return {"driver": "zarr3", "kvstore": store}
