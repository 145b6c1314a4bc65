"""Files, folders, copies and logs in buckets."""

import os

import pytest
from helpers.python_process import start

from hive_jax.buckets import as_path, filesystem, list_names, move_folder
from hive_jax.downloads import local_copy
from hive_jax.errors import ConfigError, DataError, MissingInputError, OutputError
from hive_jax.io import atomic_dir, read_json, remove_folder, write_json
from hive_jax.log_file import LogFile, flush_logs, logs_flushed, read_records


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
        with pytest.raises(ConfigError, match="no such bucket; expected an existing"):
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


UNREACHABLE = """
import os
from helpers.bucket_servers import free_port
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
from hive_jax.train import main
raise SystemExit(main(["--config", "stage1", "--workdir", "s3://hive/run"]))
"""


def test_an_unreachable_bucket_asks_for_a_restart(servers):
    process = start(UNREACHABLE)
    _, message = process.communicate()
    assert process.returncode == 75
    assert "s3://hive cannot be reached: Could not connect" in message


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
