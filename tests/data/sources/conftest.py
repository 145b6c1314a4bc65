"""A small set in LLaVA's formats."""

import importlib.util

import pytest
from helpers.llava_sets import (
    COUNT,
    encoded,
    photograph,
    record,
    text_record,
    write_parquet,
    write_set,
)

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.fixture(scope="module")
def files():
    return {record(i)["image"]: encoded(photograph(i)) for i in range(COUNT)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("llava")
    records = [record(i) for i in range(COUNT)]
    records[7] = text_record(7)
    written = write_set(folder, files, records)
    if HAS_PYARROW:
        written["parquet"] = write_parquet(folder, files, records)
    return written
