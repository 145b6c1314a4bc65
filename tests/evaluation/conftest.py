"""Benchmarks that the built-in dataset writes, in both formats."""

import shutil
from pathlib import Path

import pytest
from helpers.benchmark_sets import COUNT, SEED, as_parquet

from hive_jax.data.tabletop.benchmarks import write_benchmarks


@pytest.fixture(scope="session")
def official(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "official"
    write_benchmarks(str(folder), COUNT, SEED)
    return folder


@pytest.fixture(scope="session")
def parquet(official) -> Path:
    folder = official.parent / "parquet"
    as_parquet(official, folder)
    return folder


@pytest.fixture
def copy(official, tmp_path) -> Path:
    return shutil.copytree(official, tmp_path / "copy")
