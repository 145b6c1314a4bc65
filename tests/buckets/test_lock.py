"""One process holds the lock of a folder in a bucket."""

import errno
import json
import signal
import time

import pytest
from helpers.python_process import start

from hive_jax import bucket_lock
from hive_jax.buckets import create_object, filesystem, list_names
from hive_jax.errors import OutputError
from hive_jax.locks import exclusive_lock

LOCKED = """
import sys, time
from hive_jax import bucket_lock
from hive_jax.errors import OutputError
from hive_jax.locks import exclusive_lock
bucket_lock.HEARTBEAT_SECONDS = 1
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with exclusive_lock(sys.argv[1], "run.lock"):
        print("held", flush=True)
        sys.stdin.read()
except OutputError as error:
    print("refused", error, flush=True)
"""


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
from hive_jax import (
    bucket_lock,
    chat,
    compare,
    evaluate,
    export_hf,
    prepare_data,
    probe,
    visualize,
)
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


def test_a_service_without_conditional_writes_is_refused(folder, monkeypatch):
    # As services do that ignore If-None-Match.
    client = filesystem(folder)
    write = client.pipe_file
    monkeypatch.setattr(
        client, "pipe_file", lambda path, value, **_: write(path, value)
    )
    with pytest.raises(OutputError, match="expected one with conditional writes"):
        exclusive_lock(folder, "run.lock").__enter__()


@pytest.mark.parametrize("times", [2, 3])
def test_an_object_that_changes_while_it_is_read_is_read_again(times):
    """s3fs raises EBUSY then; it cannot be made to happen at the right moment."""
    errors = [OSError(errno.EBUSY, "Etag no longer exists")] * times

    class Path:
        def read_bytes(self):
            if errors:
                raise errors.pop()
            return b"{}"

    if times < 3:
        assert bucket_lock._read_text(Path()) == "{}"
    else:
        with pytest.raises(OSError, match="Etag"):
            bucket_lock._read_text(Path())
