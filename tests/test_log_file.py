"""Log files: whole records on a full disk, and damage that costs its own lines."""

import errno
import subprocess
import sys

import pytest

from hive_jax.errors import OutputError
from hive_jax.log_file import append_bytes, read_records

# A limit on the size of files acts as a disk that becomes full within a write.
FULL_DISK = """
import resource, signal, sys
from hive_jax.errors import OutputError
from hive_jax.log_file import append_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (10, 10, 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        append_bytes(sys.argv[1], b"seven..")
    except OutputError as error:
        print(error)
"""


def test_a_record_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new folder" / "log"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.count(f"cannot write {path}: [Errno {errno.EFBIG}]") == 1
    assert path.read_bytes() == b"seven.." * 2


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(OutputError, match="cannot write /dev/full"):
        append_bytes("/dev/full", b"x")
    with pytest.raises(OutputError, match="cannot write"):
        append_bytes(tmp_path, b"x")
    with pytest.raises(OutputError, match="cannot read"):
        read_records(tmp_path, bool)


def test_damaged_lines_are_counted_and_the_others_used(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_records(path, bool) == ([], 0)
    bad = [b"5", b"null", b"[]", b"{}", b'{"a": "\xff"}', b"{", b"", b"[" * 100_000]
    lines = [b'{"a": 1}', *bad, b'{"a": 2}', b'{"a": 3, "cut sho']
    path.write_bytes(b"\n".join(lines))
    records = [{"a": 1}, {"a": 2}]
    assert read_records(path, lambda record: "a" in record) == (records, len(bad))
