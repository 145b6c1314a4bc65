"""CSV and Parquet, made here in the real formats."""

import gzip
import importlib.util
import json
import os

import pytest
from helpers.sources import IMAGES, opened

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.errors import ConfigError, DataError, MissingInputError

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


def bad(source, index: int) -> InvalidSample:
    with pytest.raises(InvalidSample) as caught:
        source[index]
    return caught.value


def test_csv(tmp_path, archive):
    path = tmp_path / "labels.csv"
    rows = "".join(f'{name},"{name[0]}, or not"\n' for name in IMAGES)
    path.write_text("\ufefffile,caption\n" + rows + "a/0.jpg,\n../x,no\n", "utf-8")
    source = opened(f"table:{path},images={archive},image=file,text=caption")
    assert len(source) == len(IMAGES) + 2
    for index, (name, image) in enumerate(IMAGES.items()):
        sample = source[index]
        assert sample.image == image
        assert sample.segments[0].text == f"{name[0]}, or not\n"
    assert [bad(source, i).reason for i in (6, 7)] == ["record", "unsafe path"]
    path.write_text("image,label\na/0.jpg,hot_dog\n")
    sample = opened(f"table:{path},images={archive}")[0]
    assert sample.segments[0].text == "a photo of a hot dog\n"
    with pytest.raises(ConfigError, match="say where its images are"):
        opened(f"table:{path}")
    with pytest.raises(DataError, match="columns image, label; expected img, and"):
        opened(f"table:{path},images={archive},image=img")
    with pytest.raises(MissingInputError, match="no such file"):
        opened(f"table:{tmp_path}/no.csv,images={archive}")
    path.write_text("image,label\n")
    with pytest.raises(DataError, match="has no samples"):
        opened(f"table:{path},images={archive}")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", ", "])
@pytest.mark.parametrize("suffix", ["csv", "CSV", "tsv", "txt"])
def test_any_delimiter_and_suffix(tmp_path, archive, delimiter, suffix):
    path = tmp_path / f"captions.{suffix}"
    rows = [("id", "image", "text"), *((i, n, "a, b; c") for i, n in enumerate(IMAGES))]
    lines = [delimiter.join(f'"{field}"' for field in row) for row in rows]
    path.write_text("\r\n".join(lines), "utf-8-sig", newline="")
    source = opened(f"table:{path},images={archive}")
    assert [source[i].image for i in range(len(source))] == list(IMAGES.values())
    assert source[5].segments[0].text == "a, b; c\n"


def test_files_that_are_no_tables_are_named(tmp_path, archive):
    for content, kind in (
        (b"PK\3\4" + bytes(99), "an Excel workbook: save the table as CSV"),
        (b'[{"image": "a.jpg"}]', "JSON: use llava: for conversations"),
        ("image,text\n".encode("utf-16"), "is UTF-16; expected UTF-8"),
        ("image,text\n".encode("latin-1") + b"\xe9", "not CSV in UTF-8"),
        (gzip.compress(b"image,text\n", mtime=0), "is compressed with gzip: unpack it"),
        (b"", "is empty; expected a header and rows"),
        (b"ARROW1\0\0", "an Arrow file: write it as Parquet"),
    ):
        (tmp_path / "table.csv").write_bytes(content)
        with pytest.raises(DataError, match=kind):
            opened(f"table:{tmp_path}/table.csv,images={archive}")
    with pytest.raises(MissingInputError, match="x.tsv: no such file"):
        opened(f"table:{tmp_path}/x.tsv,images={archive}")


def test_images_of_a_table_are_looked_up_before_training(tmp_path, archive):
    (tmp_path / "t.csv").write_text("image,text\n0.jpg,a\n1.jpg,b\n")
    options = SourceOptions(16, "hf_bicubic", max_bad_fraction=0.01)
    with pytest.raises(MissingInputError, match="2 of 2 images .*the nearest: a/0.jpg"):
        whole_source(f"table:{tmp_path}/t.csv,images={archive}", options)


def test_rows_of_csv_that_are_not_like_the_header(tmp_path, archive):
    path = tmp_path / "labels.csv"
    long = "a" * 900_000
    path.write_text(f'image,text\na/0.jpg\n\na/0.jpg,a,b\na/0.jpg,"{long}"\n')
    source = opened(f"table:{path},images={archive}")
    assert len(source) == 3
    assert "line 2 has fewer fields than the header" in bad(source, 0).detail
    assert "line 4 has more fields than the header" in bad(source, 1).detail
    assert source[2].segments[0].text == long + "\n"
    for text, said in (
        ('image,text\na/0.jpg,"a" b\n', "line 2: not CSV.*twice, in quotes"),
        (
            'image,text\na/0.jpg,a\nb/1.jpg,"a\n\n',
            "lines 3 to 4: not CSV: unexpected end",
        ),
        (f"image,text\na/0.jpg,{long}{long}\n", "line 2: not CSV: field larger"),
        ('image,"text\n', "not CSV"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            opened(f"table:{path},images={archive}")
    path.write_bytes(b"image,text\n\xff,\xff\n")
    with pytest.raises(DataError, match="not CSV in UTF-8"):
        opened(f"table:{path},images={archive}")


def test_files_that_cannot_be_read(tmp_path, archive):
    (tmp_path / "labels.csv").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        opened(f"table:{tmp_path}/labels.csv,images={archive}")
    (tmp_path / "chat.json").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        opened(f"llava:{tmp_path}/chat.json,images={archive}")


@pytest.mark.parametrize("name", ["pipe", "pipe.csv", "pipe.parquet", "folder"])
@pytest.mark.parametrize("kind", ["table", "llava"])
def test_pipes_are_not_waited_for(tmp_path, archive, kind, name):
    (tmp_path / "folder").mkdir()
    for path in ("pipe", "pipe.csv", "pipe.parquet", "folder/a.parquet"):
        os.mkfifo(tmp_path / path)
    source = f"{kind}:{tmp_path / name},images={archive}"
    with pytest.raises((DataError, MissingInputError), match=str(tmp_path / name)):
        opened(source)


def test_classes_of_csv_are_captions(tmp_path, archive):
    path = tmp_path / "labels.csv"
    path.write_text("image,label\na/0.jpg,hot_dog\na/0.jpg,\na/0.jpg,pizza\n")
    source = opened(f"table:{path},images={archive}")
    said = [source[i].segments[0].text for i in (0, 2)]
    assert said == ["a photo of a hot dog\n", "a photo of a pizza\n"]
    assert bad(source, 1).detail == "has no class"


def test_labels_of_csv(tmp_path, archive):
    """Numbers by value, what only looks like one by name, without surrounding space."""
    path = tmp_path / "labels.csv"
    labels = ["10", " 9", "²", "٣", "1e3", "Ⅷ", "cat ", "cat", " "]
    path.write_text(
        "image,label\n" + "".join(f"a/0.jpg,{v}\n" for v in labels), "utf-8"
    )
    source = opened(f"table:{path},images={archive}")
    assert source.classes == ("1e3", "cat", "²", "Ⅷ", "٣", "9", "10")
    assert [source[i].label for i in (1, 6, 7)] == ["9", "cat", "cat"]
    assert bad(source, 8).detail == "has no class"


def test_options_of_tables_without_meaning(tmp_path, archive):
    path = tmp_path / "labels.csv"
    path.write_text("image,text,label\na/0.jpg,a,b\n")
    source = f"table:{path},images={archive}"
    with pytest.raises(ConfigError, match="text=text and label=label; expected one"):
        opened(f"{source},text=text,label=label")
    with pytest.raises(DataError, match="columns text and label; choose the captions"):
        opened(source)
    with pytest.raises(ConfigError, match="has no use with image=none"):
        opened(f"{source},image=none,text=text")
    assert opened(f"{source},text=text")[0].segments[0].text == "a\n"
    assert opened(f"{source},label=label").classes == ("b",)
    sample = opened(f"table:{path},image=none,text=text")[0]
    assert sample.image is None and sample.segments[0].text == "a\n"


@pytest.mark.parametrize("header", ["image,text,text", "image,image,text", "text,x,x"])
def test_a_name_twice_in_a_header(tmp_path, archive, header):
    (tmp_path / "a.csv").write_text(f"{header}\na/0.jpg,b,c\n")
    with pytest.raises(DataError, match="has the column (text|image|x) twice; rename"):
        opened(f"table:{tmp_path}/a.csv,images={archive}")
    (tmp_path / "a.csv").write_text("image,text,,\na/0.jpg,b,,\n,b,,\n")
    source = opened(f"table:{tmp_path}/a.csv,images={archive}")
    assert source[0].segments[0].text == "b\n"
    assert bad(source, 1).detail == "line 3 has no image"


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_that_names_images(tmp_path, archive):
    import pyarrow
    import pyarrow.parquet

    def write(column) -> str:
        table = pyarrow.table(
            {"image": column, "text": [f"a {name}" for name in IMAGES]}
        )
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        return f"table:{tmp_path}/a.parquet"

    names, options = list(IMAGES), f",images={archive}"
    for column in (
        names,
        pyarrow.array(names, pyarrow.large_string()),
        pyarrow.array(names, pyarrow.string_view()),
        pyarrow.array(names).dictionary_encode(),
        [[name] for name in names],
        [{"bytes": None, "path": name} for name in names],
    ):
        source = opened(write(column) + options)
        got = [source[i].image for i in range(len(names))]
        assert got == list(IMAGES.values())
        with pytest.raises(MissingInputError, match="names 6 images and has no bytes"):
            opened(write(column))
    with pytest.raises(ConfigError, match="names no file, it holds the images; leave"):
        opened(write(list(IMAGES.values())) + options)
    with pytest.raises(DataError, match="image is null; image=none reads texts alone"):
        opened(write(pyarrow.nulls(6)))
    source = opened(write(pyarrow.nulls(6)) + ",image=none")
    assert source[1].image is None and source[1].segments[0].text == f"a {names[1]}\n"


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_with_the_classes_of_hugging_face(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"img": {"bytes": image, "path": name}, "fine_label": int(name[0] == "b")}
        for name, image in IMAGES.items()
    ]
    rows.append({"img": None, "fine_label": 1})
    for label in (-1, 2, None):
        rows.append({"img": rows[0]["img"], "fine_label": label})
    table = pyarrow.Table.from_pylist(rows)
    features = {"fine_label": {"names": ["hot_dog", "pizza"], "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    source = opened(f"table:{tmp_path},image=img,label=fine_label")
    texts = [
        ("a photo of a hot dog\n", "a photo of a pizza\n")[i % 2] for i in range(6)
    ]
    got = [source[i] for i in range(6)]
    assert [sample.image for sample in got] == list(IMAGES.values())
    assert [sample.segments[0].text for sample in got] == texts
    assert bad(source, 6).reason == "missing"
    assert "the row has no bytes" in bad(source, 6).detail
    for index in (7, 8, 9):
        assert bad(source, index).reason == "record"
    assert "is of class -1; expected 0 to 1" in bad(source, 7).detail


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_without_names_of_classes(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"image": image, "label": 3} for image in IMAGES.values()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    rows = [{"image": image, "label": "hot_dog"} for image in IMAGES.values()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    source = opened(f"table:{tmp_path}")
    assert source[5].segments[0].text == "a photo of a 3\n"
    assert source[6].segments[0].text == "a photo of a hot dog\n"
    assert source[6].image == source[0].image
    source = opened(f"table:{tmp_path},text=label")
    assert "label is of type int; expected text" in bad(source, 0).detail
    assert source[6].segments[0].text == "hot_dog\n"


def test_a_class_of_csv_in_two_spellings(tmp_path, archive):
    path = tmp_path / "labels.csv"
    path.write_text("image,label\na/0.jpg,Cat\na/2.jpg,cat \n")
    with pytest.raises(DataError, match="classes 'Cat' and 'cat', which differ"):
        opened(f"table:{path},images={archive}")
    path.write_text("image,label\na/0.jpg,0\na/2.jpg,1\n")
    (note,) = opened(f"table:{path},images={archive}").notes
    assert "the numbers 0 to 1" in note and "a column of names with label=" in note
