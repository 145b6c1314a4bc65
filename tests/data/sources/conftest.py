"""Small sets: in LLaVA's formats, and a zip of images."""

import importlib.util
import zipfile

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
from helpers.sources import IMAGES

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


@pytest.fixture
def archive(tmp_path):
    """A zip of IMAGES."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, image in IMAGES.items():
            out.writestr(name, image)
    return path
