"""Parquet files that unpack to far more than they are, and images of every type."""

from pathlib import Path

import pytest

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord
from hive_jax.data.sources.image_store import FolderStore
from hive_jax.data.sources.parquet import ParquetTable, parquet_files
from hive_jax.data.sources.parquet_images import ParquetImages
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
        ParquetImages(ParquetTable([path]), "image")
    table = ParquetTable([path])
    assert table.values("text") == text
    with pytest.raises(DataError, match="bytes of image; expected at most 512,000,000"):
        table.values("image")


def test_texts_that_are_not_utf8_are_malformed_records(tmp_path):
    text = pyarrow.array([b"x", b"\xff", None]).view(pyarrow.string())
    path = write(tmp_path / "a.parquet", text=text)
    first, second, third = ParquetTable([path]).values("text")
    assert (first, third) == ("x", None)
    assert isinstance(second, MalformedRecord) and "cannot be read" in second


def images_of(*paths: Path, column: str = "image", named=None) -> ParquetImages:
    return ParquetImages(ParquetTable(list(paths)), column, named)


def test_every_file_must_have_images(tmp_path):
    write(tmp_path / "a.parquet", image=[b"a", None], text=["x", "y"], more=[1, 2])
    write(tmp_path / "b.parquet", image=[{"bytes": b"b"}], text=[b"\xff"])
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    table, images = ParquetTable(paths), images_of(*paths)
    assert table.columns == ["image", "text"]
    assert images.counts() == [1, 0, 1]
    assert table.values("text") == ["x", "y", b"\xff"]
    assert [images.read(row) for row in "02"] == [b"a", b"b"]
    with pytest.raises(InvalidSample, match="row 1: the row has no bytes"):
        images.read("1")
    for name, column, said in (
        ("image", [1], "b.parquet: the column image is int64; expected the bytes"),
        ("image", [[1.5]], "the column image is list"),
        ("image", [{"url": "a"}], "the column image is struct"),
        ("photo", [b"a"], "b.parquet has the columns photo; expected one with"),
    ):
        write(tmp_path / "b.parquet", **{name: column})
        with pytest.raises(DataError, match=said):
            images_of(*paths)


STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.binary_view(),
        pyarrow.binary(3),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
        STRUCT,
        pyarrow.list_(pyarrow.binary()),
        pyarrow.large_list(STRUCT),
        pyarrow.list_(STRUCT, 1),
    ],
    ids=str,
)
def test_every_type_that_holds_bytes(tmp_path, kind):
    inner = kind.value_type if "list" in str(kind) else kind
    value = {"bytes": b"abc", "path": None} if inner == STRUCT else b"abc"
    is_list = inner is not kind
    column = pyarrow.array([[value] if is_list else value, None], kind)
    images = images_of(write(tmp_path / "a.parquet", image=column))
    assert images.counts() == [1, 0]
    assert images.read("0") == b"abc" and images.has("0") and not images.has("1")
    assert images.num_named() == 0


def test_rows_that_name_files(tmp_path):
    """Of {bytes, path}, with and without the footer's statistics; and lists of them."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    files = FolderStore(str(tmp_path))
    rows = [
        {"bytes": b"c", "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "c.jpg"},
        {"bytes": b"d", "path": None},
    ]
    expected = [1, 1, 0, 0, 1, 1]
    for number, column in enumerate((rows, [[row] for row in rows])):
        kind = pyarrow.list_(STRUCT) if number else STRUCT
        for statistics in (True, False):
            path = tmp_path / "a.parquet"
            table = pyarrow.table({"image": pyarrow.array(column, kind)})
            parquet.write_table(
                table, path, row_group_size=2, write_statistics=statistics
            )
            images = images_of(path, named=files)
            assert images.counts() == expected and images.num_named() == 2
            assert [images.has(str(i)) for i in range(6)] == [1, 1, 0, 0, 0, 1]
            assert [images.read(row) for row in "015"] == [b"c", b"b.jpg", b"d"]
            assert images.image_name("1") == f"{path}/b.jpg"
            assert images.image_name("3") == f"{path}, row 3"
    path = write(tmp_path / "b.parquet", image=pyarrow.array([["a", "b"], ["a"]]))
    images = images_of(path, named=files)
    assert images.counts() == [2, 1]
    with pytest.raises(InvalidSample, match="has 2 images; expected one at most"):
        images.read("0")


def test_paths_that_are_all_the_same_are_no_names(tmp_path):
    rows = [{"bytes": bytes([i]), "path": "image.png"} for i in range(3)]
    path = write(tmp_path / "a.parquet", image=pyarrow.array(rows, STRUCT))
    images = images_of(path)
    assert len({images.image_name(str(row)) for row in range(3)}) == 3


def test_a_column_twice(tmp_path):
    table = pyarrow.table([[b"a"], ["x"], ["y"]], names=["image", "text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the column text twice"):
        ParquetTable([tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (("data/train-00000-of-00001", "data/test-00000-of-00001"), "data/train*"),
        (("train/0000", "validation/0000"), "train/*"),
        (("train", "val"), "train*"),
        (("train", "unlabeled"), "train*"),
    ],
)
def test_a_folder_of_several_splits_is_refused(tmp_path, files, remedy):
    for name in files:
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text=[name])
    with pytest.raises(DataError, match="name the files of one") as caught:
        parquet_files(str(tmp_path))
    assert str(caught.value).endswith(f": {tmp_path}/{remedy}.parquet")
    pattern = str(caught.value).rpartition(" ")[2]
    assert parquet_files(pattern) == [tmp_path / f"{files[0]}.parquet"]


def test_a_folder_of_one_split_or_none_is_a_dataset(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "part-0", "trainer"):
        write(tmp_path / f"{name}.parquet", text=[name])
    assert len(parquet_files(str(tmp_path))) == 4
