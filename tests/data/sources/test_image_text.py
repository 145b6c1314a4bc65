"""Folders of classes, and what a pair of an image and a text may be."""

import collections
import os

import pytest
from helpers.llava_sets import encoded, photograph
from helpers.sources import opened

from hive_jax.config import DataConfig
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, SourceOptions
from hive_jax.data.sources.class_folder import open_class_folder
from hive_jax.data.sources.image_store import open_store
from hive_jax.data.sources.image_text import ImageTextSource
from hive_jax.data.sources.registry import make_source
from hive_jax.errors import ConfigError, DataError, MissingInputError

IMAGES = {f"{name}/{i}.jpg": encoded(photograph(i)) for i, name in enumerate("ab" * 3)}


def content(source) -> list[tuple[bytes, str]]:
    samples = [source[i] for i in range(len(source))]
    return [(sample.image, sample.segments[0].text) for sample in samples]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name, image in IMAGES.items():
        path = root / {"a": "hot_dog", "b": "Pizza/inner"}[name[0]] / name[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (root / "README.txt").write_text("not an image")
    (root / "hot_dog/labels.csv").write_text("not an image")
    return root


def test_folders_are_classes(folder):
    source = opened(f"folder:{folder}")
    wanted = [(f"b/{i}.jpg", "Pizza") for i in (1, 3, 5)]
    wanted += [(f"a/{i}.jpg", "hot dog") for i in (0, 2, 4)]
    assert sorted(content(source)) == sorted(
        (IMAGES[name], f"a photo of a {label}\n") for name, label in wanted
    )
    assert content(opened(f"folder:{folder}")) == content(source)
    places = [source.describe(i) for i in range(6)]
    assert sum("Pizza/inner/1.jpg" in where for where in places) == 1
    fingerprint = source.fingerprint
    (folder / "hot_dog/4.jpg").rename(folder / "hot_dog/6.JPEG")
    assert opened(f"folder:{folder}").fingerprint != fingerprint
    assert len(opened(f"folder:{folder},take=first:2")) == 2


def test_folders_that_are_no_set(folder, tmp_path):
    with pytest.raises(MissingInputError, match="no such folder"):
        opened("folder:nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one for each class"):
        opened(f"folder:{tmp_path}/empty")
    with pytest.raises(ConfigError, match="expected a path, folder:PATH"):
        opened("folder:")


def test_every_class_of_a_folder_has_its_share_of_what_is_held_out(tmp_path):
    for label in range(10):
        (tmp_path / f"class {label}").mkdir()
        for number in range(50):
            (tmp_path / f"class {label}/{number}.png").touch()
    (tmp_path / "class 3/folder.png").mkdir()
    config = DataConfig(source=f"folder:{tmp_path}", validation_size=50)
    seen = []
    for split, share in (("validation", 5), ("train", 45)):
        source = make_source(config, split, image_size=16, with_image=False)
        texts = [source[i].segments[0].text for i in range(len(source))]
        assert {*collections.Counter(texts).values()} == {share}
        assert len({*texts}) == 10
        seen += [source.describe(i) for i in range(len(source))]
    assert len({*seen}) == 500


def test_a_text_that_says_nothing_is_a_bad_sample(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image")
    store = open_store(str(tmp_path), "images")
    texts = [" a ", " \n", "", "half \ud800", MalformedRecord("is of no class")]
    source = ImageTextSource("set", ["a.jpg"] * 5, texts, store)
    assert source[0].segments[0].text == "a\n"
    for index, said in enumerate(["no text", "no text", "lone surr", "of no class"], 1):
        with pytest.raises(
            InvalidSample, match=f"record {index}, image a.jpg: .*{said}"
        ):
            source[index]


def test_names_that_are_not_unicode_are_bad_samples(tmp_path):
    """As files from other systems have them."""
    for name in (b"class/\xff.jpg", b"cl\xe9/a.jpg"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    source = open_class_folder(str(tmp_path), SourceOptions(16, "hf_bicubic"))
    assert len(source) == 2
    reasons = set()
    for index in range(2):
        with pytest.raises(InvalidSample) as caught:
            source[index]
        reasons.add(caught.value.reason)
        str(caught.value).encode("utf-8")
    assert reasons == {"record", "unsafe path"}
