"""The lock of a workdir: one live run, no leftovers of killed ones."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hive_jax.errors import OutputError
from hive_jax.training import lock
from hive_jax.training.lock import WorkdirLock, writable_directory

HOLDER = """
import sys, time
from hive_jax.training.lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
RACER = """
import sys, time
from hive_jax.errors import OutputError
from hive_jax.training.lock import WorkdirLock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    WorkdirLock(sys.argv[1]).acquire()
    print("won", flush=True)
    sys.stdin.read()
except OutputError:
    print("refused", flush=True)
"""


def _python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _pretend_owner(workdir, age, **changes):
    """Leaves a lock file as another process would, last touched `age` seconds ago."""
    path = workdir / "run.lock"
    with WorkdirLock(str(workdir)):
        owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | changes))
    os.utime(path, (time.time() - age,) * 2)


def test_second_run_is_refused_until_the_first_is_killed(tmp_path, caplog):
    holder = _python(HOLDER, tmp_path)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {holder.pid} on"):
            WorkdirLock(str(tmp_path)).acquire()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with WorkdirLock(str(tmp_path)):
        assert f"process {holder.pid}" in caplog.text
        assert len(caplog.records) == 1


def test_only_one_of_many_starters_wins(tmp_path):
    racers = [_python(RACER, tmp_path, time.time() + 1.0) for _ in range(6)]
    outcomes = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(outcomes) == ["refused"] * 5 + ["won"]


def test_release_frees_without_a_message(tmp_path, caplog):
    for _ in range(2):
        with (
            WorkdirLock(str(tmp_path)),
            pytest.raises(OutputError, match=f"process {os.getpid()}"),
        ):
            WorkdirLock(str(tmp_path)).acquire()
    assert not caplog.records


def test_release_leaves_the_lock_of_another_owner(tmp_path):
    held = WorkdirLock(str(tmp_path))
    held.acquire()
    other = json.loads((tmp_path / "run.lock").read_text()) | {"host": "elsewhere"}
    (tmp_path / "run.lock").write_text(json.dumps(other))
    held.release()
    assert json.loads((tmp_path / "run.lock").read_text())["host"] == "elsewhere"


def test_process_number_used_again_is_not_the_owner(tmp_path):
    _pretend_owner(tmp_path, age=0, start="1")
    with WorkdirLock(str(tmp_path)):
        pass


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "pid:[7]"}])
def test_other_host_is_judged_by_its_heartbeat(tmp_path, change):
    _pretend_owner(tmp_path, age=lock.STALE_SECONDS - 30, **change)
    with pytest.raises(OutputError):
        WorkdirLock(str(tmp_path)).acquire()
    os.utime(tmp_path / "run.lock", (time.time() - lock.STALE_SECONDS - 1,) * 2)
    with WorkdirLock(str(tmp_path)):
        pass


def test_heartbeat_refreshes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with WorkdirLock(str(tmp_path)):
        os.utime(tmp_path / "run.lock", (0, 0))
        deadline = time.time() + 5
        while os.stat(tmp_path / "run.lock").st_mtime < 1 and time.time() < deadline:
            time.sleep(0.02)
        assert time.time() - os.stat(tmp_path / "run.lock").st_mtime < 5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00\x00"])
def test_torn_file_is_a_free_lock(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with WorkdirLock(str(tmp_path)):
        pass


def test_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in [tmp_path / "file", tmp_path / "file" / "workdir"]:
        with pytest.raises(OutputError, match=str(path)):
            writable_directory(str(path))
        with pytest.raises(OutputError, match=str(path)):
            WorkdirLock(str(path))
