"""Whole files, one JSON reader, and paths that are no regular files."""

import gzip
import os
import socket
import subprocess
import sys

import pytest

from hive_jax import io
from hive_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingInputError,
    OutputError,
)
from hive_jax.io import (
    atomic_dir,
    atomic_write,
    read_json,
    require_path,
    require_regular,
    require_writable,
    write_json,
)
from hive_jax.json_text import parse_json
from hive_jax.locks import exclusive_lock


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in [tmp_path / "file", tmp_path / "file" / "workdir"]:
        with pytest.raises(OutputError, match=str(path)):
            require_writable(path)
        with pytest.raises(OutputError, match=str(path)), exclusive_lock(path):
            pass


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
    (tmp_path / f".a.json.{dead.pid}.0f.tmp").write_text("half")
    write_json(tmp_path / "a.json", [])
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_temporary_names_are_not_predictable_and_links_are_not_followed(
    tmp_path, monkeypatch
):
    names = []
    for _ in range(2):
        with atomic_write(tmp_path / "a.json") as temporary:
            names.append(temporary.name)
    assert names[0] != names[1]
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~_umask()
    # Even for somebody who guesses the name: nothing is written through a link.
    (tmp_path / "victim").write_text("as before")
    monkeypatch.setattr(io.secrets, "token_hex", lambda size: "guessed")
    planted = tmp_path / f".a.json.{os.getpid()}.guessed.tmp"
    for make in (planted.symlink_to, planted.hardlink_to):
        make(tmp_path / "victim")
        with pytest.raises(OutputError, match="File exists"):
            write_json(tmp_path / "a.json", [])
        planted.unlink()
    (tmp_path / f".b.{os.getpid()}.guessed.tmp").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="File exists"), atomic_dir(tmp_path / "b"):
        pass
    assert (tmp_path / "victim").read_text() == "as before"


def test_a_link_under_the_final_name_is_replaced(tmp_path):
    (tmp_path / "victim").write_text("as before")
    (tmp_path / "a.json").symlink_to(tmp_path / "victim")
    write_json(tmp_path / "a.json", [])
    assert (tmp_path / "victim").read_text() == "as before"
    assert not (tmp_path / "a.json").is_symlink()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "path",
    [
        *("hdfs://host/a", "http://host/a.json", "https://host/a", "file:///tmp/a"),
        *("gs:/bucket/run", "a\0b"),
    ],
)
def test_urls_are_refused_by_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="workdir is "):
        require_path(path, "workdir")
    for use in (
        *(read_json, require_writable, require_regular, lambda p: write_json(p, [])),
        *(lambda p: exclusive_lock(p).__enter__(), lambda p: atomic_dir(p).__enter__()),
    ):
        with pytest.raises(ConfigError):
            use(path)
    assert not [*tmp_path.iterdir()]  # no ./gs:/bucket/run


@pytest.mark.parametrize("path", ["run", "/a/b", "~/a", "C:/a", "builtin:x", "a:b/c"])
def test_other_paths_are_not_taken_for_urls(path):
    require_path(path, "workdir")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "socket", "link", "/dev/zero"):
        with pytest.raises(DataError, match="is a pipe, socket or device; expected"):
            read_json(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder; expected a regular file"):
        require_regular(tmp_path / "folder", error=CheckpointError)
    with pytest.raises(MissingInputError, match="no such file"):
        require_regular(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "is not JSON"),
        ("{}".encode("utf-16"), "UTF-16; expected UTF-8"),
        (b'"\xe9"', "is not UTF-8"),
        (
            gzip.compress(b"{}", mtime=0),
            "a.json is compressed with gzip: unpack it with gunzip",
        ),
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
