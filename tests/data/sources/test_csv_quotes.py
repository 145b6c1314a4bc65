"""Fields of several lines in CSV, and quotes that are left open."""

import csv
import zipfile
from random import Random

import pytest
from helpers.sources import opened

from hive_jax.errors import DataError


@pytest.mark.parametrize(
    ("lines", "line", "swallowed"),
    [
        (['a/0.jpg,"open', 'b/1.jpg,b"', "a/2.jpg,a"], "2", "b/1.jpg,b"),
        (
            ["a/0.jpg,a", "", 'b/1.jpg,"open', "a/2.jpg,a", 'b/3.jpg,b"'],
            "4",
            "a/2.jpg,a",
        ),
        (['"a/0.jpg,open', 'b/1.jpg",b'], "2", "a/0.jpg,open"),
        (['a/0.jpg,"two', 'lines"', 'a/2.jpg,"open', 'b/3.jpg,b"'], "4", "b/3.jpg,b"),
        (['a/0.jpg\t"open', 'b/1.jpg\tb"'], "2", r"b/1.jpg\\tb"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quote_that_is_left_open_joins_no_rows(
    tmp_path, archive, lines, line, swallowed, end
):
    path = tmp_path / "table.csv"
    header = "image\ttext" if "\t" in lines[0] else "image,text"
    path.write_text(end.join([header, *lines]), newline="")
    said = f"line {line}: the field in quotes .* rows of the table in it: '{swallowed}'"
    with pytest.raises(DataError, match=said):
        opened(f"table:{path},images={archive}")


@pytest.mark.parametrize("ids", [(17, 18), ("a.jpg", "b.JPG")])
def test_a_quote_that_is_left_open_among_texts_alone(tmp_path, ids):
    path = tmp_path / "table.csv"
    path.write_text('id,text\n{},"open\n{},b"\n'.format(*ids))
    with pytest.raises(DataError, match="line 2: the field in quotes that begins here"):
        opened(f"table:{path},image=none")


@pytest.mark.parametrize(
    "name", ["dir/{}.jpg", "my pic {}.png", "{:08x}", "no {}, see.jpg", "{}"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_caption_is_taken_for_rows(tmp_path, name, delimiter):
    """Captions with quotes, delimiters, numbers and names in several lines."""
    pieces = ["a dog", "photo.jpg", "see img_1.png, left", 'say "hi"', "", "10,000"]
    pieces += ["x\ty", ";", "\n", "\r\n", "\n\n", "\n ", "IMG 3.JPG", "image,text"]
    random, rows = Random(0), []
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(10):
            image, caption = name.format(i), " ".join(random.choices(pieces, k=9))
            archive.writestr(image, b"")
            rows.append({"image": image, "text": f"{i}{caption}."})
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    for options in (f"images={tmp_path}/images.zip", "image=none"):
        source = opened(f"table:{path},{options}")
        got = [source[i].segments[0].text for i in range(len(source))]
        assert got == [row["text"] + "\n" for row in rows]


def test_captions_may_have_several_lines(tmp_path, archive):
    path = tmp_path / "table.csv"
    caption = "A dog, and\na cat, 10,000 of them.\n\nSee a.jpg, or b"
    path.write_text(f'image,text\na/0.jpg,"{caption}"\nb/1.jpg,"two\nlines"\n')
    for options in (f"images={archive}", "image=none"):
        source = opened(f"table:{path},{options}")
        got = [source[i].segments[0].text for i in range(len(source))]
        assert got == [f"{caption}\n", "two\nlines\n"]
    path.write_text('image\ttext\na/0.jpg\t"two, 2,\nlines"\n')
    source = opened(f"table:{path},images={archive}")
    assert source[0].segments[0].text == "two, 2,\nlines\n"
