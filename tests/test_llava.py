"""LLaVA's caption files and image files, made here in the real formats."""

import json

import numpy as np
import pytest
from PIL import Image

from hive_jax.config import DataConfig
from hive_jax.data.images import read_image
from hive_jax.data.llava import LlavaCaptions
from hive_jax.data.sources import make_source
from hive_jax.errors import ConfigError, DataError, MissingInputError


def record(number: int, **changes) -> dict:
    turns = [
        {"from": "human", "value": "Give a brief description.\n<image>"},
        {"from": "gpt", "value": f"caption number {number} "},
    ]
    return {
        "id": str(number),
        "image": f"{number}.png",
        "conversations": turns,
    } | changes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    (tmp_path / "chat.json").write_text(json.dumps([record(i) for i in range(6)]))
    return tmp_path


def source(folder, split="train", preprocessing="hf_bicubic"):
    config = DataConfig(
        source="llava",
        preprocessing=preprocessing,
        path=str(folder / "chat.json"),
        image_folder=str(folder / "images"),
        validation_size=2,
    )
    return make_source(config, split, image_size=16, with_image=True)


def test_splits_hold_each_record_once(folder):
    train, validation = source(folder), source(folder, "validation")
    assert (len(train), len(validation)) == (4, 2)
    texts = [s[i].segments[0].text for s in (validation, train) for i in range(len(s))]
    assert texts == [f"caption number {i}\n" for i in range(6)]
    assert train.fingerprint != validation.fingerprint


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_image_is_pils_square(folder, name):
    one = source(folder, preprocessing=f"hf_{name}")
    sample = one[0]
    with Image.open(folder / "images/2.png") as image:
        resample = Image.Resampling[name.upper()]
        wanted = np.asarray(image.resize((16, 16), resample))
    assert (one.fingerprint == source(folder).fingerprint) == (name == "bicubic")
    np.testing.assert_array_equal(sample.image, wanted)
    assert sample.segments[0].target


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    path = tmp_path / f"image.{suffix}"
    base = Image.new("L", (8, 8), 200)
    (Image.new(mode, (8, 8)) if mode == "I;16" else base.convert(mode)).save(path)
    image = read_image(path, 4, "hf_bicubic")
    assert image.shape == (4, 4, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff\xd8\xff"])
def test_damaged_images_are_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        read_image(path, 4, "hf_bicubic")


def test_truncated_jpeg_is_an_error(tmp_path):
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        read_image(path, 16, "hf_bicubic")


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (record(1, image=None), "record 1"),
        (record(1, conversations=[]), "record 1"),
        ({"id": "1"}, "record 1"),
        (record(1, image=3), "must be strings"),
    ],
)
def test_damaged_records_are_named(folder, broken, named):
    records = [record(0), broken, record(2), record(3)]
    (folder / "chat.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match=named):
        source(folder)


@pytest.mark.parametrize("name", ["../chat.json", "/etc/hostname", "a/../../x.png"])
def test_images_outside_of_the_folder_are_refused(folder, name):
    records = [record(i) for i in range(3)] + [record(3, image=name)]
    (folder / "chat.json").write_text(json.dumps(records))
    data = source(folder)
    with pytest.raises(DataError, match="outside"):
        data[1]


def test_missing_inputs_are_named(folder):
    with pytest.raises(MissingInputError, match=r"data\.path"):
        LlavaCaptions(
            "no.json",
            "",
            "train",
            image_size=8,
            validation_size=1,
            preprocessing="hf_bicubic",
        )
    (folder / "images/2.png").unlink()
    with pytest.raises(MissingInputError, match=r"2\.png"):
        source(folder)
    (folder / "chat.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        source(folder)


def test_unknown_source_suggests_the_nearest():
    with pytest.raises(ConfigError, match="llava"):
        make_source(DataConfig(source="lava"), "train", image_size=8, with_image=True)
