"""The installed package works in an empty folder, without its checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("--config.total_steps=1", "--config.batch_size=8")
TINY = (*SHORT, "--config.data.validation_size=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Installs the package into a folder of its own and returns a function that runs
    `python -m hive_jax COMMAND` in another, empty folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("hive_jax", "configs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--target", site, source]
    subprocess.run([*pip, *options], check=True, cwd=source)
    empty = tmp_path_factory.mktemp("empty")

    def run(*arguments: str) -> str:
        finished = subprocess.run(
            [sys.executable, "-m", "hive_jax", *arguments],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def test_installed_package_trains_evaluates_and_exports(run):
    run("train", "--config", "stage1:fusion=hive", *TINY)
    assert "python -m hive_jax.train" in run("train", "--help")
    run("export_hf", "--run", "workdir/stage1", "--component", "encoder", "--out", "x")
    probe = ("--config.epochs=1", "--config.num_seeds=1")
    sizes = ("--config.train=tabletop:classes,take=first:40",)
    sizes += ("--config.test=tabletop:classes,split=test,take=first:40",)
    run("probe", "--config", "probe", "--run", "workdir/stage1", *probe, *sizes)
