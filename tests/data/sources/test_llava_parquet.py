"""LLaVA's records in Parquet."""

import importlib.util

import pytest
from helpers.llava_sets import record, text_record, write_set
from helpers.sources import opened_split

from hive_jax.data.types import Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_in_every_spelling(tmp_path, files):
    """Bytes, names in a folder, lists, messages, and text alone."""
    import pyarrow
    import pyarrow.parquet

    write_set(tmp_path, files, [])
    path, images = tmp_path / "set.parquet", tmp_path / "images"
    names = [record(i)["image"] for i in range(4)]
    turns = [record(i)["conversations"] for i in range(4)]
    messages = [
        [
            {"role": "user", "content": [{"type": "image", "text": None}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"a {i}"}]},
        ]
        for i in range(4)
    ]
    inside = [{"bytes": files[name], "path": name} for name in names]
    outside = [{"bytes": None, "path": name} for name in names]
    by_name = f",images={images}"

    def write(**columns) -> str:
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        return f"llava:{path}"

    for columns, options in (
        ({"conversations": turns, "image": inside}, ""),
        ({"conversations": turns, "images": [[one] for one in inside]}, ""),
        ({"conversations": turns, "image": outside}, by_name),
        ({"conversations": turns, "image": names}, by_name),
        ({"conversations": turns, "images": [[name] for name in names]}, by_name),
        ({"messages": messages, "images": [[one] for one in inside]}, ""),
        ({"messages": messages, "image": outside}, by_name),
    ):
        source = opened_split(write(**columns) + options + ",form=chat")
        assert [source[i].image for i in range(2)] == [files[names[i]] for i in (1, 3)]
        assert source[0].image_before == 0
    text = [text_record(i)["conversations"] for i in range(4)]
    for columns in ({"image": pyarrow.nulls(4)}, {"id": list("abcd")}):
        source = opened_split(write(conversations=text, **columns))
        assert [source[i].image for i in range(2)] == [None, None]
        assert source[0].segments == (Segment("caption number 1\n"),)
    for columns, options, said in (
        ({"image": outside}, "", "names 4 images and has no bytes of them; say where"),
        (
            {"image": inside},
            by_name,
            "names no file, it holds the images; leave images=",
        ),
        ({"image": inside, "images": inside}, "", "columns image and images; expected"),
        ({"img": inside}, "", "has the columns conversations, img; expected"),
        (
            {"messages": messages},
            "",
            "the columns conversations and messages; expected",
        ),
    ):
        with pytest.raises((ConfigError, DataError, MissingInputError), match=said):
            opened_split(write(conversations=turns, **columns) + options)
    with pytest.raises(DataError, match="no record of .* has an image"):
        opened_split(write(conversations=text) + by_name)
    two = write(conversations=turns, images=[[one, one] for one in inside])
    with pytest.raises(DataError, match="4 of 4 records .* has 2 images; expected one"):
        opened_split(two)
    missing = opened_split(
        write(conversations=turns, image=["no.jpg", *names[1:]]) + by_name,
        max_bad_fraction=1.0,
        validation_size=3,
    )
    with pytest.raises(MissingInputError, match="4 of 4 images are not in"):
        opened_split(write(conversations=turns, image=["no.jpg"] * 4) + by_name)
    assert len(missing) == 1


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_of_other_columns(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "set.parquet"
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="not Parquet"):
        opened_split(f"llava:{path}")
    for rows, said in (
        ([{"text": "a"}], "has the columns text; expected"),
        (
            [{"conversations": [], "image": 3}],
            "the column image is int64; expected the bytes of images, or names",
        ),
    ):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        with pytest.raises(DataError, match=said):
            opened_split(f"llava:{path}")
