"""Whole files, one JSON reader, and a lock that no killed process leaves behind."""

import errno
import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hive_jax import io
from hive_jax.errors import (
    CheckpointError,
    DataError,
    MissingInputError,
    OutputError,
)
from hive_jax.io import (
    atomic_dir,
    atomic_write,
    exclusive_lock,
    parse_json,
    read_json,
    require_writable,
    write_json,
)

HOLDER = """
import sys, time
from hive_jax.io import exclusive_lock
with exclusive_lock(sys.argv[1], *sys.argv[2:]):
    print("held", flush=True)
    time.sleep(60)
"""
RACER = """
import sys, time
from hive_jax.errors import OutputError
from hive_jax.io import exclusive_lock
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
    _leave_lock(tmp_path, age=io.STALE_SECONDS - 30, host="elsewhere")
    _require_held(tmp_path, match="on elsewhere")
    os.utime(tmp_path / "run.lock", (time.time() - io.STALE_SECONDS - 1,) * 2)
    _require_free(tmp_path)


def test_heartbeat_decides_on_file_systems_without_flock(tmp_path, monkeypatch):
    _leave_lock(tmp_path, age=io.STALE_SECONDS - 30)

    def flock(*unused_arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    _require_held(tmp_path)
    os.utime(tmp_path / "run.lock", (time.time() - io.STALE_SECONDS - 1,) * 2)
    with exclusive_lock(tmp_path, "run.lock"):
        _require_held(tmp_path)
    _require_free(tmp_path)


def test_heartbeat_refreshes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "HEARTBEAT_SECONDS", 0.05)
    with exclusive_lock(tmp_path, "run.lock"):
        os.utime(tmp_path / "run.lock", (0, 0))
        deadline = time.time() + 5
        while os.stat(tmp_path / "run.lock").st_mtime < 1 and time.time() < deadline:
            time.sleep(0.02)
        assert time.time() - os.stat(tmp_path / "run.lock").st_mtime < 5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00\x00"])
def test_torn_file_is_a_free_lock(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    _require_free(tmp_path)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in [tmp_path / "file", tmp_path / "file" / "workdir"]:
        with pytest.raises(OutputError, match=str(path)):
            require_writable(path)
        _require_held(path, match=str(path))


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert read_json(path) == {"a": 1}
    with (
        pytest.raises(OutputError, match="exists"),
        atomic_write(path, overwrite=False),
    ):
        pass
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_folder_is_whole_or_absent(tmp_path):
    path = tmp_path / "export"
    with pytest.raises(KeyError), atomic_dir(path) as temporary:
        (temporary / "file").write_text("half")
        raise KeyError
    assert not [*tmp_path.iterdir()]
    with atomic_dir(path) as temporary:
        (temporary / "file").write_text("whole")
    assert (path / "file").read_text() == "whole"
    with pytest.raises(OutputError, match="exists"), atomic_dir(path):
        pass


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.json.{dead.pid}.tmp").write_text("half")
    write_json(tmp_path / "a.json", [])
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "is not JSON"),
        ("{}".encode("utf-16"), "UTF-16; expected UTF-8"),
        (b'"\xe9"', "is not UTF-8"),
        (gzip.compress(b"{}"), "a.json is compressed with gzip: unpack it with gunzip"),
        (b"PK\3\4", "is a zip: unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "get the file with git lfs"),
        (b"[1]", r"expected an object, got \[1\]"),
        (b'{"a": 1, "a": 1}', "'a' is twice in the object {'a': 1}"),
        (b'{"x": [{"b": 2, "c": 3, "b": 4}]}', "'b' is twice in the object"),
    ],
)
def test_what_is_no_json_object_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for error in (DataError, CheckpointError):
        with pytest.raises(error, match=message) as raised:
            read_json(path, error=error)
        assert str(path) in str(raised.value)


def test_json_with_a_byte_order_mark_and_of_any_type(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path, list) == read_json(path, None) == [1]
    assert parse_json("3", "here") == 3
    monkeypatch.setattr(io, "MAX_JSON_BYTES", 5)
    with pytest.raises(DataError, match="6 bytes; expected at most 5"):
        read_json(path, list)
    with pytest.raises(MissingInputError, match="no such file"):
        read_json(tmp_path / "b.json")
