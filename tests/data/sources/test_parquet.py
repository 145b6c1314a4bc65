"""Parquet files that unpack to far more than they are, and files of other shapes."""

from pathlib import Path

import pytest

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord
from hive_jax.data.sources.parquet import ParquetStore
from hive_jax.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, use_dictionary: bool = True, **columns) -> Path:
    parquet.write_table(
        pyarrow.table(columns), path, compression="zstd", use_dictionary=use_dictionary
    )
    return path


def test_a_row_group_that_unpacks_to_too_much_is_refused_unread(tmp_path):
    """Seven images and texts of 100 MB of zeros each, in some kilobytes."""
    large = [bytes(100_000_000)] * 7
    text = ["a"] * 7
    path = write(tmp_path / "a.parquet", use_dictionary=False, image=large, text=text)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(
        DataError, match=r"row group has 700,\d{3},\d{3} bytes of image"
    ):
        ParquetStore([path], "image")
    store = ParquetStore([path], "")
    assert store.values("text") == text
    with pytest.raises(DataError, match="bytes of image; expected at most 512,000,000"):
        store.values("image")


def test_texts_that_are_not_utf8_are_malformed_records(tmp_path):
    text = pyarrow.array([b"x", b"\xff", None]).view(pyarrow.string())
    path = write(tmp_path / "a.parquet", text=text)
    first, second, third = ParquetStore([path], "").values("text")
    assert (first, third) == ("x", None)
    assert isinstance(second, MalformedRecord) and "cannot be read" in second


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
