"""Checkpoints that survive kills, full disks and damaged files."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hive_jax.errors import (
    CheckpointError,
    MissingInputError,
    NumericsError,
    OutputError,
)
from hive_jax.training.checkpointing import manager, trees
from hive_jax.training.checkpointing.integrity import fingerprint
from hive_jax.training.checkpointing.manager import Checkpoints

# Orbax abandons the other reads and writes when one of them fails; Python complains
# about each of these coroutines when it collects it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collect_abandoned_coroutines():
    yield
    gc.collect()


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


def make_state(step=0, seed=0, dtype=jnp.bfloat16):
    """A state with a frozen leaf, bfloat16 leaves and masked optimizer nodes."""
    generator = np.random.default_rng(seed)
    params = {
        "img": {"kernel": jnp.asarray(generator.normal(size=(64, 32)), jnp.float32)},
        "head": {"scale": jnp.asarray(generator.normal(size=(8,)), dtype)},
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {"train": optax.adamw(1e-3), "freeze": optax.set_to_zero()},
            {"img": {"kernel": "train"}, "head": {"scale": "freeze"}},
        ),
    )
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return State(jnp.asarray(step, jnp.int32), params, opt_state)


def abstract(state, spec=(), devices=1):
    """The request for `state`, matrices sharded by `spec` over some devices."""
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])

    def request(leaf):
        sharding = NamedSharding(mesh, PartitionSpec(*spec if leaf.ndim == 2 else ()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(request, state)


def save_steps(workdir, steps, keep=3):
    """Saves a different state at each step and returns the last one."""
    with Checkpoints(str(workdir), keep=keep) as checkpoints:
        for step in steps:
            state = make_state(step, seed=step)
            checkpoints.save(step, state, {"seed": step})
        checkpoints.wait()
    return state


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    assert fingerprint(restored) == fingerprint(expected)
    for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def data_files(workdir, step, item="params"):
    """Files with array data of one item, the largest first."""
    files = Path(workdir, "checkpoints", str(step), item).glob("**/d/*")
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(bytes(content))


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
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


def test_flipped_bit_is_found_named_and_the_older_step_used(tmp_path, caplog):
    state = save_steps(tmp_path, [1, 2])
    # The largest file holds the compressed values of the kernel; which bits matter
    # to them differs, but nearly all do.
    path = data_files(tmp_path, 2)[0]
    flip_bit(path, 8 * path.stat().st_size // 2)
    with Checkpoints(str(tmp_path)) as checkpoints:
        restored, meta = checkpoints.restore(abstract(state))
        assert_same(restored, make_state(1, seed=1))
        assert meta["step"] == 1
        assert (
            "checkpoint 2 is damaged: wrong values in params/img/kernel" in caplog.text
        )
        assert checkpoints.latest_step() == 1
        names = sorted(os.listdir(tmp_path / "checkpoints"))
        assert names[0] == "1" and names[1].startswith("2.damaged-")
        checkpoints.save(2, state, {})
        checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_random_damage_never_gives_wrong_values(tmp_path):
    """Any one damaged file: the same values anyway, or the older step."""
    save_steps(tmp_path, [1, 2])
    expected = {step: make_state(step, seed=step) for step in [1, 2]}
    folder = tmp_path / "checkpoints" / "2"
    generator = np.random.default_rng(0)
    outcomes = []
    files = sorted(path for path in folder.glob("**/*") if path.is_file())
    for number, path in enumerate(files):
        content = path.read_bytes()
        if number % 3 == 0 and content:
            flip_bit(path, int(generator.integers(8 * len(content))))
        elif number % 3 == 1:
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        # Read-only, so that the step stays in its place for the next damage.
        with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
            restored, meta = checkpoints.restore(abstract(expected[2]))
        assert_same(restored, expected[meta["step"]])
        outcomes.append(meta["step"])
        path.write_bytes(content)
    assert outcomes.count(1) >= 3


@pytest.mark.parametrize("content", ["", '{"meta": {"st', '{"meta": {}}'])
def test_unreadable_meta_falls_back(tmp_path, content):
    state = save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text(content)
    with Checkpoints(str(tmp_path)) as checkpoints:
        with pytest.raises(CheckpointError, match="checkpoints/2"):
            checkpoints.read_meta(2)
        assert checkpoints.read_meta()["step"] == 1
        restored, _ = checkpoints.restore(abstract(state))
    assert int(restored.step) == 1


def test_changed_meta_is_damage(tmp_path):
    save_steps(tmp_path, [1, 2])
    path = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
    sealed = json.loads(path.read_text())
    sealed["meta"]["seed"] = 3
    path.write_text(json.dumps(sealed))
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match="digest"):
            checkpoints.read_meta(2)
        assert checkpoints.read_meta(1)["seed"] == 1


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_no_value_that_is_not_finite_is_saved(tmp_path, part):
    good = make_state(1)
    leaves = trees.flatten(good)
    name = next(n for n in leaves if n.startswith(part) and n.endswith("img/kernel"))
    leaves[name] = leaves[name].at[3, 2].set(jnp.inf)
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, good, {})
        with pytest.raises(NumericsError, match=f"step 2 is not saved.*{name}"):
            checkpoints.save(2, trees.unflatten(good, leaves), {})
        assert checkpoints.latest_step() == 1


def test_a_stored_step_that_is_not_finite_is_passed_over(tmp_path, caplog, monkeypatch):
    save_steps(tmp_path, [1])
    bad = make_state(2)
    bad.params["head"]["scale"] = bad.params["head"]["scale"] * jnp.nan
    with monkeypatch.context() as patch, Checkpoints(str(tmp_path)) as checkpoints:
        # As a version without the check would have saved it.
        inspect = lambda leaves: (fingerprint(leaves), [])
        patch.setattr(manager, "inspect_leaves", inspect)
        checkpoints.save(2, bad, {})
    with Checkpoints(str(tmp_path)) as checkpoints:
        restored, meta = checkpoints.restore(abstract(bad))
        assert meta["step"] == 1 and fingerprint(restored) == meta["fingerprints"]
    assert (
        "checkpoint 2 is damaged: NaN or infinity in params/head/scale" in caplog.text
    )


def test_nothing_is_renamed_if_no_step_is_good(tmp_path):
    state = save_steps(tmp_path, [1, 2])
    for step in [1, 2]:
        (tmp_path / "checkpoints" / f"{step}" / "meta" / "metadata").unlink()
    with Checkpoints(str(tmp_path)) as checkpoints:
        with pytest.raises(CheckpointError, match="(?s)no good.*step 2.*step 1"):
            checkpoints.restore(abstract(state))
        assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


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


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    save_steps(tmp_path, [1])
    leftover = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (leftover / "params").mkdir(parents=True)
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == 1
        deadline = time.time() + 5
        while leftover.exists() and time.time() < deadline:
            time.sleep(0.02)
    assert not leftover.exists()


TRAINER = """
import sys
import jax
sys.path.insert(0, "tests")
from training.checkpointing.test_manager import *

checkpoints = Checkpoints(sys.argv[1])
restored = checkpoints.restore(abstract(make_state()))
first = int(restored[0].step) + 1 if restored else 1
print("from", first, flush=True)
for step in range(first, 100_000):
    checkpoints.save(step, make_state(step, seed=step), {"seed": step})
"""


def test_kill_inside_a_save_leaves_the_step_before(tmp_path):
    folder = tmp_path / "checkpoints"
    newest = 0
    for _ in range(2):
        trainer = python(TRAINER, tmp_path)
        try:
            assert trainer.stdout.readline().startswith("from ")
            deadline = time.time() + 20
            while time.time() < deadline:
                names = os.listdir(folder)
                steps = [int(name) for name in names if name.isdigit()]
                if len(names) > len(steps) and max(steps, default=0) >= newest + 2:
                    break
        finally:
            trainer.send_signal(signal.SIGKILL)
            trainer.communicate()
        with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
            restored, meta = checkpoints.restore(abstract(make_state()))
        assert meta["step"] >= newest + 2
        assert_same(restored, make_state(meta["step"], seed=meta["step"]))
        newest = meta["step"]


DISK_FULL = """
import resource
import sys
import jax
sys.path.insert(0, "tests")
from training.checkpointing.test_manager import *

big = make_state()
big.params["big"] = jnp.asarray(np.random.default_rng(0).normal(size=200_000))
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 8):
    if step in (3, 4):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    checkpoints.save(step, big.replace(step=jnp.int32(step)), {})
    checkpoints.check(wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    print(step, checkpoints.latest_step(), flush=True)
checkpoints.wait()
print(sorted(os.listdir(checkpoints.directory)))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
checkpoints.save(8, big, {})
try:
    checkpoints.wait()
except OutputError as error:
    print(error)
try:
    for step in range(9, 20):
        checkpoints.save(step, big, {})
except OutputError as error:
    print(step, error)
"""


def test_full_disk_costs_a_warning_and_no_older_step(tmp_path):
    output, warnings = python(DISK_FULL, tmp_path).communicate(timeout=60)
    lines = output.splitlines()
    assert lines[:7] == ["1 1", "2 2", "3 2", "4 2", "5 5", "6 6", "7 7"], warnings
    assert lines[7] == "['5', '6', '7']"
    assert "step 7 is safe" in lines[8]
    assert lines[9].startswith("11 3 checkpoint(s) in a row not written")
    # One warning of two lines for each failed save; the rest is Python's own, of the
    # coroutines that Orbax abandoned.
    assert warnings.count("training continues") == 4
    assert warnings.count("WARNING:") == 4, warnings


def test_names_in_the_state_are_the_names_in_meta(tmp_path):
    state = save_steps(tmp_path, [1])
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    assert meta["leaves"] == trees.describe(state)
    assert "params/img/kernel" in meta["leaves"]
