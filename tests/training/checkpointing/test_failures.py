"""Checkpoints survive kills, full disks, damaged files and values that are not finite."""

import json
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest
from helpers.checkpoints import (
    abstract,
    assert_same,
    data_files,
    flip_bit,
    make_state,
    save_steps,
)

from hive_jax.errors import (
    CheckpointError,
    NumericsError,
)
from hive_jax.training.checkpointing import manager, trees
from hive_jax.training.checkpointing.integrity import fingerprint
from hive_jax.training.checkpointing.manager import Checkpoints

# Orbax abandons the other reads and writes when one of them fails; Python complains
# about each of these coroutines when it collects it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


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


ABANDONED = """
import asyncio, logging, sys
from hive_jax.training.checkpointing import manager

SOURCE = "async def read():\\n try: await wait()\\n finally: raise ValueError(name)"
for name in ("orbax", "mine"):
    loop = asyncio.new_event_loop()
    functions = {"wait": lambda: loop.create_future(), "name": name}
    exec(compile(SOURCE, f"/packages/{name}/read.py", "exec"), functions)
    coroutine = functions["read"]()
    coroutine.send(None)
    del coroutine
for text in ('Error reading "x/.zarray" in OCDBT database', "mine too"):
    logging.getLogger("asyncio").error("Future exception was never retrieved: %s", text)
"""


def test_reads_that_orbax_abandons_print_nothing(tmp_path):
    """After a first one has failed; of others the traceback is printed."""
    _, errors = python(ABANDONED).communicate(timeout=60)
    assert errors.count("Exception ignored") == 1 and "ValueError: mine" in errors
    assert "orbax" not in errors and "OCDBT" not in errors and "mine too" in errors


@pytest.mark.parametrize("content", ["", '{"meta": {"st', '{"meta": {}}'])
def test_unreadable_meta_falls_back(tmp_path, content):
    state = save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text(content)
    with Checkpoints(str(tmp_path)) as checkpoints:
        with pytest.raises(CheckpointError, match="checkpoints/2: meta: "):
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
sys.path.insert(0, "tests")
from helpers.checkpoints import abstract, make_state
from hive_jax.training.checkpointing.manager import Checkpoints

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
import os
import resource
import sys
sys.path.insert(0, "tests")
import jax.numpy as jnp
import numpy as np
from helpers.checkpoints import make_state
from hive_jax.errors import OutputError
from hive_jax.training.checkpointing.manager import Checkpoints

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
