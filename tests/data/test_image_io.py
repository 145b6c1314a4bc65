"""Image files of every kind, as the encoder sees them."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.llava_sets import encoded, photograph
from PIL import Image

from hive_jax.config import schema
from hive_jax.data.image_io import MAX_PIXELS
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.transforms import PREPROCESSING, decode
from tools.fault_suite.image_files import DAMAGED, JPEG, huge


def decoded(content, size=16, preprocessing="hf_bicubic"):
    return decode(content, size, preprocessing, "set, record 1")


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_image_is_pils_square(kind, name):
    content = encoded(photograph(1), kind)
    with Image.open(io.BytesIO(content)) as image:
        resample = Image.Resampling[name.upper()]
        wanted = np.asarray(image.convert("RGB").resize((16, 16), resample))
    np.testing.assert_array_equal(decoded(content, 16, f"hf_{name}"), wanted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "GIF"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.new("L", (8, 8), 255 if mode == "1" else 200)
    kind = {"CMYK": "JPEG", "GIF": "GIF", "PA": "WEBP"}.get(mode, "PNG")
    image = grey if mode == "GIF" else grey.convert("RGBA" if mode == "PA" else mode)
    if kind == "WEBP":
        image = grey.convert("RGBA")
    got = decoded(encoded(image, kind), 4)
    assert got.shape == (4, 4, 3) and got.dtype == np.uint8
    assert (abs(got.astype(int) - (255 if mode == "1" else 200)) <= 2).all()


def test_of_16_bits_the_upper_8_are_kept():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    content = encoded(Image.fromarray(values), "PNG")
    got = decoded(content, 256)
    np.testing.assert_array_equal(got, np.repeat((values >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (7, 300)])
def test_extreme_shapes_are_resized(size):
    assert decoded(encoded(photograph(1, size), "PNG")).shape == (16, 16, 3)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_images_are_named_with_a_reason(name):
    content, reason = DAMAGED[name]
    with pytest.raises(InvalidSample, match=r"^set, record 1: ") as caught:
        decoded(content)
    assert caught.value.reason == reason


def test_every_truncation_is_noticed():
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(JPEG) - 200, 100):
        with pytest.raises(InvalidSample):
            decoded(JPEG[:cut])


def test_the_names_of_configs_are_these():
    assert set(schema.PREPROCESSING) == set(PREPROCESSING)


def test_what_is_padded_must_fit_as_a_square():
    with pytest.raises(
        InvalidSample, match="30,000 x 2 pixels to be padded; expected at"
    ):
        decoded(huge(30_000, 2), preprocessing="hf_bicubic_pad")
    assert decoded(encoded(photograph(1, (3000, 2)), "PNG")).shape == (16, 16, 3)


SIZES = [(300 + 31 * number, 700 - 23 * number) for number in range(20)]


@pytest.mark.parametrize("name", ["hf_bicubic", "hf_bilinear"])
@pytest.mark.parametrize("pad", ["", "_pad"])
def test_photographs_are_what_transformers_sees(name, pad):
    """Bit by bit, on 20 JPEGs of many shapes."""
    transformers = pytest.importorskip("transformers")
    kind = "LlavaImageProcessorPil" if pad else "SiglipImageProcessorPil"
    if not hasattr(transformers, kind):
        pytest.skip("this transformers has no processor for PIL alone")
    processor = getattr(transformers, kind)(
        size={"height": 96, "width": 96},
        resample={"hf_bicubic": 3, "hf_bilinear": 2}[name],
        image_mean=[0.5, 0.5, 0.5],
        do_pad=bool(pad),
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
    )
    for number, size in enumerate(SIZES):
        content = encoded(photograph(number, size), quality=75 + number)
        with Image.open(io.BytesIO(content)) as image:
            wanted = processor(image, return_tensors="np")["pixel_values"][0]
        got = decoded(content, 96, name + pad).transpose(2, 0, 1)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("width", "height"), [(40, 31), (31, 40), (2, 9), (8, 8)])
def test_bars_are_127_and_the_image_is_in_the_middle(width, height):
    image, side = photograph(1, (width, height)), max(width, height)
    square = np.full((side, side, 3), 127, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(image)
    content = encoded(image, "PNG")
    np.testing.assert_array_equal(decoded(content, side, "hf_bicubic_pad"), square)
    wanted = Image.fromarray(square).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded(content, 16, "hf_bilinear_pad"), wanted)


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """In float64: each pixel is shared between the two centres around it."""
    for axis, length in enumerate(pixels.shape[:2]):
        places = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
        distance = abs(places[:, None] - np.arange(length)[None])
        pixels = np.moveaxis(
            np.tensordot((1 - distance).clip(0), pixels, (1, axis)), 0, axis
        )
    return pixels


@pytest.mark.parametrize("size", [1, 16, 61, 224])
def test_big_visions_bilinear_cuts_what_float64_says(size):
    rng = np.random.default_rng(size)
    for width, height in [(1, 1), (640, 480), (61, 97), (1, 50), *SIZES[:5]]:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        got = decoded(encoded(Image.fromarray(pixels), "PNG"), size, "bv_bilinear")
        wanted = bilinear(pixels.astype(np.float64), size)
        # float32 has places around 500 to 1e-4: values to 0.05, two ways times 255.
        unsure = abs(wanted - wanted.round()) < 0.05
        np.testing.assert_array_equal(got[~unsure], np.floor(wanted)[~unsure])
        assert (abs(got - wanted)[unsure] < 1.05).all()


def test_big_visions_bilinear_is_tensorflows():
    """The numbers are of tf.image.resize, 2.21."""
    pixels = (np.arange(5 * 7 * 3).reshape(5, 7, 3) * 37 % 256).astype(np.uint8)
    content = encoded(Image.fromarray(pixels), "PNG")
    small, large = (decoded(content, size, "bv_bilinear") for size in (4, 9))
    assert small[..., 0].tolist() == [
        [42, 205, 175, 113],
        [54, 216, 186, 124],
        [65, 227, 197, 136],
        [76, 42, 209, 147],
    ]
    assert large[3, :, 0].tolist() == [13, 87, 173, 202, 90, 176, 120, 93, 167]
    assert (int(small.sum()), int(large.sum())) == (5786, 30300)


def test_big_visions_bilinear_is_the_same_in_strips():
    """A large image is not copied whole."""
    pixels = np.asarray(photograph(1, (1500, 2100)))
    got = decoded(encoded(Image.fromarray(pixels), "PNG"), 48, "bv_bilinear")
    halves = [
        decoded(encoded(Image.fromarray(half), "PNG"), 24, "bv_bilinear")
        for half in (pixels[:1050, :750], pixels[1050:, 750:])
    ]
    np.testing.assert_array_equal(got[:24, :24], halves[0])
    np.testing.assert_array_equal(got[24:, 24:], halves[1])


MEMORY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from hive_jax.data.transforms import decode
contents = [open(path, "rb").read() for path in sys.argv[1:]] * 2
def read(content):
    return decode(content, 384, "bv_bilinear", "").shape
with ThreadPoolExecutor(8) as pool:
    assert set(pool.map(read, contents)) == {(384, 384, 3)}
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
"""


def test_many_threads_hold_no_more_memory_than_one(tmp_path):
    """The largest images allowed, in the formats that need most."""
    side = int(MAX_PIXELS**0.5)
    large = Image.new("RGBA", (side, side), (200, 100, 50, 99))
    large.save(tmp_path / "a.webp", lossless=True, quality=0, method=0)
    large.save(tmp_path / "b.png", compress_level=1)
    Image.new("I;16", (side, side), 30_000).save(tmp_path / "c.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *sorted(map(str, tmp_path.iterdir()))],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 1_000_000  # kB
