"""Compiled programs that outlive the process."""

import json
import os
import sys

import jax
import pytest

from hive_jax.training.compilation_cache import enable_compilation_cache
from tools.fault_suite import micro_run


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """What JAX is told to use; nothing has been said so far."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = {}
    monkeypatch.setattr(jax.config, "update", said.__setitem__)
    return said


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_cache_their_programs(monkeypatch, folder, tmp_path, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    kept = enable_compilation_cache()
    assert folder == {"jax_compilation_cache_dir": kept}
    assert kept == str(tmp_path / "hive_jax/compilation")
    # JAX runs what it finds there: nobody else may write.
    assert (tmp_path / "hive_jax/compilation").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("set_to", ["", "/somewhere/else"])
def test_jax_compilation_cache_dir_overrides_the_default(monkeypatch, folder, set_to):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", set_to)
    assert enable_compilation_cache() is None
    assert folder == {}


def test_cpus_have_no_cache_by_default(folder):
    assert enable_compilation_cache() is None
    assert folder == {}


def test_an_unwritable_cache_is_a_warning(monkeypatch, folder, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert enable_compilation_cache() is None
    assert folder == {}


@pytest.mark.parametrize("which", ["hive_jax", "hive_jax/compilation"])
@pytest.mark.parametrize("change", ["group", "world", "owner"])
def test_a_cache_that_others_may_have_written_is_not_used(
    monkeypatch, folder, tmp_path, caplog, which, change
):
    """Its programs are loaded and run."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    os.makedirs(tmp_path / "hive_jax/compilation")
    for path in ("hive_jax", "hive_jax/compilation"):
        (tmp_path / path).chmod(0o755)
    if change == "owner":
        # Not root's: for another process of the same user it would be a stranger's.
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        expected = "belongs to user"
    else:
        (tmp_path / which).chmod(0o775 if change == "group" else 0o757)
        expected = f"chmod 700 {tmp_path / which}"
    assert enable_compilation_cache() is None
    assert folder == {}
    (record,) = caplog.records
    assert expected in record.getMessage()


def test_a_cache_is_private_whatever_the_umask(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    before = os.umask(0)
    try:
        assert enable_compilation_cache() == enable_compilation_cache() is not None
    finally:
        os.umask(before)


COUNTED = """
import atexit, collections, json, runpy, sys
import jax

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
atexit.register(lambda: print("counts", json.dumps(counts)))
sys.argv = sys.argv[1:]
runpy.run_module("hive_jax.train", run_name="__main__", alter_sys=True)
"""


def test_the_second_start_compiles_nothing(tmp_path):
    """Two runs of one config with one folder of programs."""
    counts = []
    for workdir in ("first", "second"):
        command = micro_run.command(
            "stage1.py", tmp_path / workdir, "--config.total_steps=2"
        )
        arguments = command[command.index("hive_jax.train") :]
        counted = [sys.executable, "-c", COUNTED, *arguments]
        output = micro_run.finish(micro_run.start(counted, tmp_path / "programs"))
        counts.append(json.loads(output.rpartition("counts ")[2]))
    hits, misses = (
        [count.get(f"/jax/compilation_cache/cache_{kind}", 0) for count in counts]
        for kind in ("hits", "misses")
    )
    assert misses[0] > 10 and misses[1] == 0
    assert hits[1] == hits[0] + misses[0]
