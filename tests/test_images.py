"""Image files of every kind, as the encoder sees them."""

import io
import struct
import zlib

import numpy as np
import pytest
from llava_sets import encoded, photograph
from PIL import Image

from hive_jax.data.bad import BadSample
from hive_jax.data.images import decode


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
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    content = encoded(Image.fromarray(values), "PNG")
    got = decoded(content, 8)
    np.testing.assert_array_equal(got, np.repeat((values >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (7, 300)])
def test_extreme_shapes_are_resized(size):
    assert decoded(encoded(photograph(1, size), "PNG")).shape == (16, 16, 3)


def test_a_suffix_does_not_matter_and_a_rotation_is_not_applied():
    image = photograph(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(image, quality=95, exif=exif)
    np.testing.assert_array_equal(decoded(content), decoded(encoded(image, quality=95)))


def animated(kind: str) -> bytes:
    frames = [photograph(i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def huge() -> bytes:
    """A PNG whose header says 9,000 x 9,000 pixels."""
    content = bytearray(encoded(photograph(1), "PNG"))
    content[16:24] = struct.pack(">II", 9000, 9000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


JPEG = encoded(photograph(1, (200, 200)), quality=90)
PNG = encoded(photograph(1, (200, 200)), "PNG")
DAMAGED = {
    "empty": (b"", "not an image"),
    "page": (b"<html>404 not found</html>", "not an image"),
    "vector": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "start": (b"\xff\xd8\xff", "not an image"),
    "cut": (JPEG[:-500], "damaged"),
    "cut in the header": (PNG[:20], "damaged"),
    "cut png": (PNG[: len(PNG) // 2], "damaged"),
    "rotten": (PNG[:60] + bytes(50) + PNG[110:], "damaged"),
    "huge": (huge(), "too large"),
    "gif": (animated("GIF"), "animated"),
    "webp": (animated("WEBP"), "animated"),
    "apng": (animated("PNG"), "animated"),
    "tiff": (encoded(photograph(1), "TIFF"), "not an image"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_images_are_named_with_a_reason(name):
    content, reason = DAMAGED[name]
    with pytest.raises(BadSample, match=r"^set, record 1: ") as caught:
        decoded(content)
    assert caught.value.reason == reason


def test_every_truncation_is_noticed():
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(JPEG) - 200, 100):
        with pytest.raises(BadSample):
            decoded(JPEG[:cut])


def test_photographs_are_what_transformers_sees():
    """Bit by bit, on 20 JPEGs of many shapes."""
    transformers = pytest.importorskip("transformers")
    pil = getattr(transformers, "SiglipImageProcessorPil", None)
    if pil is None:
        pytest.skip("this transformers has no processor for PIL alone")
    for name, resample in (("hf_bicubic", 3), ("hf_bilinear", 2)):
        processor = pil(
            size={"height": 96, "width": 96},
            resample=resample,
            do_rescale=False,
            do_normalize=False,
        )
        for number in range(20):
            size = (300 + 31 * number, 700 - 23 * number)
            content = encoded(photograph(number, size), quality=75 + number)
            with Image.open(io.BytesIO(content)) as image:
                wanted = processor(image, return_tensors="np")["pixel_values"][0]
            got = decoded(content, 96, name).transpose(2, 0, 1)
            np.testing.assert_array_equal(got, wanted)
