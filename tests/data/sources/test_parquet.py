"""Parquet files that unpack to far more than they are, and files of other shapes."""

import subprocess
import sys
from pathlib import Path

import pytest

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.parquet import ParquetStore
from hive_jax.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = """
import sys
from pathlib import Path
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.parquet import ParquetStore
from hive_jax.errors import DataError
for path in sys.argv[1:]:
    try:
        store = ParquetStore([Path(path)], "image")
        print(len(store.read("0")), len(store.read("999")), sum(store.present()))
        print(len(store.values("text")))
    except DataError as error:
        print(error)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
"""


def repeated(value, rows: int):
    """`rows` times the same value, which the file has once."""
    indices = pyarrow.array([0] * rows, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([value]))


def write(path: Path, **columns) -> Path:
    parquet.write_table(
        pyarrow.table(columns),
        path,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=1 << 30,
    )
    return path


def test_a_small_file_takes_little_memory(tmp_path):
    """1,000 rows of one image and of one text of 50 MB each, in some kilobytes."""
    image = pyarrow.StructArray.from_arrays(
        [repeated(bytes(50_000_000), 1000), repeated("a.jpg", 1000)], ["bytes", "path"]
    )
    text = repeated("a", 1000)
    images = write(tmp_path / "images.parquet", image=image, text=text)
    text = repeated("a" * 50_000_000, 1000)
    texts = write(tmp_path / "texts.parquet", image=repeated(b"a", 1000), text=text)
    image = repeated(bytes(400_000_000), 1000)
    large = write(tmp_path / "large.parquet", image=image)
    done = subprocess.run(
        [sys.executable, "-c", ROWS, str(images), str(texts), str(large)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *found, memory = done.stdout.splitlines()
    assert found[:3] == ["50000000 50000000 1000", "1000", "1 1 1000"]
    assert "far more than the files have bytes" in found[3]
    assert "unpack to 400,000" in found[4]
    assert int(memory) < 1_000_000  # kB


def test_every_file_must_have_the_bytes_of_images(tmp_path):
    write(tmp_path / "a.parquet", image=[b"a", None], text=["x", "y"], more=[1, 2])
    write(tmp_path / "b.parquet", image=[{"bytes": b"b"}], text=[b"\xff"])
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    store = ParquetStore(paths, "image")
    assert store.columns == ["image", "text"]
    assert store.present() == [True, False, True]
    assert store.values("text") == ["x", "y", b"\xff"]
    assert [store.read(row) for row in "02"] == [b"a", b"b"]
    with pytest.raises(InvalidSample, match="row 1: the row has no bytes"):
        store.read("1")
    for name, column, said in (
        ("image", [1], "b.parquet: the column image is int64; expected the bytes"),
        ("image", [[b"a"]], "the column image is list"),
        ("image", [{"path": "a"}], "the column image is struct"),
        ("photo", [b"a"], "b.parquet has the columns photo; expected one with"),
    ):
        write(tmp_path / "b.parquet", **{name: column})
        with pytest.raises(DataError, match=said):
            ParquetStore(paths, "image")
