"""What lies in folders of classes besides images, and what images are called."""

import os
import shutil
import unicodedata

import pytest
from helpers.llava_sets import encoded, photograph

from hive_jax import prepare_data
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.errors import DataError, MissingInputError

JPEG, PNG = encoded(photograph(0)), encoded(photograph(1), "PNG")


def opened(folder):
    return whole_source(f"folder:{folder}", SourceOptions(16, "hf_bicubic"))


def write(root, **files: bytes):
    """Files by name; "__" stands for "/", as in cat__0."""
    for name, content in files.items():
        put(root, name.replace("__", "/") + ".jpg", content)
    return root


def put(root, name: str, content: bytes = JPEG):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


LEFTOVERS = (
    ".ipynb_checkpoints/cat-checkpoint.jpg",
    "__MACOSX/cat/0.jpg",
    "cat/._0.jpg",
    "cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
    "dog/Thumbs.db",
    "lost+found/0.jpg",
    "cat/.thumbnails/0.png",
    "$RECYCLE.BIN/0.jpg",
    ".DS_Store",
)


def test_leftovers_of_systems_are_no_data(tmp_path):
    write(tmp_path, cat__0=JPEG, dog__0=PNG)
    for name in LEFTOVERS:
        put(tmp_path, name)
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog") and len(source) == 2
    assert source.notes == ()


def test_images_are_known_by_their_content(tmp_path):
    for name in ("0.jfif", "1.JPG", "2.jpe", "3", "4.png", "5.image"):
        put(tmp_path, f"cat/{name}")
    for name, kind in (("0.tmp", "GIF"), ("1.dib", "BMP"), ("2", "WEBP"), ("3", "PNG")):
        put(tmp_path, f"dog/{name}", encoded(photograph(0), kind))
    source = opened(tmp_path)
    assert len(source) == 6 + 4 and source.notes == ()


def test_what_is_left_out_is_counted_and_lost_classes_are_named(tmp_path, capsys):
    write(tmp_path, cat__0=JPEG, cat__1=PNG)
    for number in range(3):
        put(tmp_path, f"scan/{number}.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30))
    put(tmp_path, "cat/labels.csv", b"BM,is no bitmap, although it begins like one")
    put(tmp_path, "cat/empty", b"")
    put(tmp_path, "loose.jpg")
    os.mkfifo(tmp_path / "cat/pipe")
    (tmp_path / "empty").mkdir()
    code = prepare_data.main(
        ["check", "--from", f"folder:{tmp_path}", "--out", str(tmp_path / ".report")]
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert "samples          2" in printed
    for part in ("7 files left out: 3 JPEG 2000", "1 .csv", "1 without suffix"):
        assert part in printed
    assert "1 unsafe path, 1 image outside of the class folders" in printed
    assert "folders without an image, which are not classes: empty, scan" in printed


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("train", "test"), "train"),
        (("Training", "Testing", "extra"), "Training"),
        (("train2017", "val2017"), "train2017"),
        (("val",), "val"),
        (("unlabeled", "train"), "train"),
        (("extra", "training_set", "sketches"), "training_set"),
        (("sketches", "train"), "train"),
        (("sketches", "test_images"), "test_images"),
    ],
)
def test_a_folder_of_splits_is_refused(tmp_path, names, remedy):
    for name in names:
        put(tmp_path, f"{name}/cat/0.jpg")
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match=f"in place of classes.*folder:.*/{remedy}$"):
        opened(tmp_path)
    assert opened(tmp_path / remedy).classes == ("cat",)


def test_a_train_may_be_a_class(tmp_path):
    write(tmp_path, train__0=JPEG, bus__0=JPEG)
    assert opened(tmp_path).classes == ("bus", "train")
    write(tmp_path, unlabelled2017__0=JPEG)
    with pytest.raises(DataError, match="splits train, unlabelled2017 in place of"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("cat", "cat "), ("hot_dog", "hot dog")]
)
def test_a_class_in_two_spellings_is_refused(tmp_path, names):
    for name in (*names, "pizza"):
        put(tmp_path, f"{name}/0.jpg")
    first, second = sorted(names)
    said = f"classes '{first}' and '{second}', which differ in case, spaces or under"
    with pytest.raises(DataError, match=said):
        opened(tmp_path)
    (tmp_path / names[0]).rename(tmp_path / "bird")
    assert len(opened(tmp_path)) == 3


def test_letters_and_numbers_are_classes(tmp_path):
    write(tmp_path, A__0=JPEG, a__0=PNG)
    source = opened(tmp_path)
    assert source.classes == ("A", "a") and source.notes == ()
    write(tmp_path / "digits", **{"0__0": JPEG, "11__0": JPEG})
    (note,) = opened(tmp_path / "digits").notes
    assert (
        "the numbers 0 to 11, and captions and prompts are as 'a photo of a 0'" in note
    )


def test_folders_without_classes_say_what_they_have(tmp_path):
    put(tmp_path, "0.jpg")
    with pytest.raises(DataError, match="one for each class; it has 1 image outside"):
        opened(tmp_path)
    with pytest.raises(MissingInputError, match="0.jpg: is a file; expected a folder"):
        opened(tmp_path / "0.jpg")


def test_links_out_of_the_folder_are_refused_at_once(tmp_path):
    put(tmp_path, "store/0.jpg")
    for name, target in (
        ("files/cat/0.jpg", "../../store/0.jpg"),
        ("classes/cat", "../store"),
        ("below/cat/more", "../../store"),
        ("circle/cat/more", "../cat"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.symlink_to(target)
        root = tmp_path / name.split("/")[0]
        with pytest.raises(DataError, match=f"leads out.*cp -rL {root} COPY, or name"):
            opened(root)
    shutil.copytree(tmp_path / "files", tmp_path / "copy")
    assert len(opened(tmp_path / "copy")) == 1
    (tmp_path / "copy/dog").symlink_to("cat")
    assert opened(tmp_path / "copy").classes == ("cat", "dog")


def test_a_class_has_one_name_on_all_systems(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café")
    put(tmp_path, f"{decomposed}/0.jpg")
    source = opened(tmp_path)
    assert source.classes == ("café",)
    assert source[0].label == "café" and source[0].image == JPEG


def test_a_folder_above_the_classes_is_refused(tmp_path):
    write(tmp_path, images__cat__0=JPEG, images__dog__0=PNG)
    put(tmp_path, "meta/classes.txt", b"cat")
    with pytest.raises(DataError, match=rf"cat, dog, .* name folder:{tmp_path}/images"):
        opened(tmp_path)
    assert opened(tmp_path / "images").classes == ("cat", "dog")
    write(tmp_path, sketches__0=JPEG)  # then folders below a class are its own affair
    assert opened(tmp_path).classes == ("images", "sketches")


def test_a_link_without_a_file_is_named(tmp_path):
    write(tmp_path, cat__0=JPEG, dog__0=PNG)
    (tmp_path / "cat/1.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(
        InvalidSample, match=r"cat/1\.jpg: is a symbolic link to a file"
    ):
        opened(tmp_path)[1]
