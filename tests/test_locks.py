"""A lock that no killed process leaves behind."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hive_jax import locks
from hive_jax.errors import OutputError
from hive_jax.locks import exclusive_lock

HOLDER = """
import sys, time
from hive_jax.locks import exclusive_lock
with exclusive_lock(sys.argv[1], *sys.argv[2:]):
    print("held", flush=True)
    time.sleep(60)
"""
RACER = """
import sys, time
from hive_jax.errors import OutputError
from hive_jax.locks import exclusive_lock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with exclusive_lock(sys.argv[1], "run.lock"):
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


def _leave_lock(folder, age, **changes):
    """Leaves a lock file as a killed process would, last touched `age` seconds ago."""
    path = folder / "run.lock"
    with exclusive_lock(folder, "run.lock"):
        owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | changes))
    os.utime(path, (time.time() - age,) * 2)


def _require_held(folder, match=None):
    with (
        pytest.raises(OutputError, match=match),
        exclusive_lock(folder, "run.lock"),
    ):
        pass


def _require_free(folder):
    with exclusive_lock(folder, "run.lock"):
        pass


def test_second_run_is_refused_until_the_first_is_killed(tmp_path, caplog):
    holder = _python(HOLDER, tmp_path, "run.lock")
    try:
        assert holder.stdout.readline() == "held\n"
        _require_held(tmp_path, match=f"process {holder.pid} on")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with exclusive_lock(tmp_path, "run.lock"):
        assert f"process {holder.pid}" in caplog.text
        assert len(caplog.records) == 1


def test_a_folder_is_locked_without_a_file(tmp_path):
    holder = _python(HOLDER, tmp_path / "new")
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputError, match="another process is writing it"),
            exclusive_lock(tmp_path / "new"),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with exclusive_lock(tmp_path / "new"):
        assert not [*(tmp_path / "new").iterdir()]


def test_only_one_of_many_starters_wins(tmp_path):
    racers = [_python(RACER, tmp_path, time.time() + 1.0) for _ in range(6)]
    outcomes = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(outcomes) == ["refused"] * 5 + ["won"]


def test_release_frees_without_a_message(tmp_path, caplog):
    for _ in range(2):
        with exclusive_lock(tmp_path, "run.lock"):
            _require_held(tmp_path, match=f"process {os.getpid()}")
    assert not caplog.records
    assert (tmp_path / "run.lock").read_text() == ""


def test_release_leaves_the_lock_of_another_owner(tmp_path):
    with exclusive_lock(tmp_path, "run.lock"):
        other = json.loads((tmp_path / "run.lock").read_text()) | {"host": "elsewhere"}
        (tmp_path / "run.lock").write_text(json.dumps(other))
    assert json.loads((tmp_path / "run.lock").read_text())["host"] == "elsewhere"


def test_process_number_used_again_is_not_the_owner(tmp_path):
    _leave_lock(tmp_path, age=0)
    _require_free(tmp_path)


def test_other_host_is_judged_by_its_heartbeat(tmp_path):
    _leave_lock(tmp_path, age=locks.STALE_SECONDS - 30, host="elsewhere")
    _require_held(tmp_path, match="on elsewhere")
    os.utime(tmp_path / "run.lock", (time.time() - locks.STALE_SECONDS - 1,) * 2)
    _require_free(tmp_path)


def test_heartbeat_decides_on_file_systems_without_flock(tmp_path, monkeypatch):
    _leave_lock(tmp_path, age=locks.STALE_SECONDS - 30)

    def flock(*unused_arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    _require_held(tmp_path)
    os.utime(tmp_path / "run.lock", (time.time() - locks.STALE_SECONDS - 1,) * 2)
    with exclusive_lock(tmp_path, "run.lock"):
        _require_held(tmp_path)
    _require_free(tmp_path)


def test_heartbeat_refreshes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    with exclusive_lock(tmp_path, "run.lock"):
        os.utime(tmp_path / "run.lock", (0, 0))
        deadline = time.time() + 5
        while os.stat(tmp_path / "run.lock").st_mtime < 1 and time.time() < deadline:
            time.sleep(0.02)
        assert time.time() - os.stat(tmp_path / "run.lock").st_mtime < 5


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"pid": 1}', "\x00\x00", "[" * 5000]
)
def test_torn_file_is_a_free_lock(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    _require_free(tmp_path)
