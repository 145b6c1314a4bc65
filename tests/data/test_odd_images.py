"""Transparency, palettes, 16 bits, rotation, metadata and suffixes of image files."""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.llava_sets import encoded, photograph
from helpers.odd_images import (
    KINDS,
    REFUSED,
    SIXTEEN_BITS,
    chunk,
    odd_images,
    png_of_16_bits,
    with_chunk,
)
from PIL import ExifTags, Image
from pixel_parity import difference, processor

from hive_jax import prepare_data
from hive_jax.data.image_io import image_format, inspect_image
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.image_store import open_store
from hive_jax.data.transforms import PREPROCESSING, decode, load_pixels, prepare_image
from hive_jax.errors import DataError

WHITE, RED = [255, 255, 255], [255, 0, 0]


@pytest.mark.parametrize("name", ["hf_bicubic", "hf_bicubic_pad"])
def test_odd_images_are_what_transformers_sees(name):
    transformers = pytest.importorskip("transformers")
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 22):
        pytest.skip("this transformers drops alpha")
    reference = processor(name)
    for kind, content in odd_images(60):
        if kind in REFUSED:
            with pytest.raises(InvalidSample, match="mode [IF]; expected 8 or 16 bits"):
                difference(content, name, reference)
        elif kind in SIXTEEN_BITS:  # theirs are clipped at 255
            assert difference(content, name, reference).max() > 0
        else:
            assert difference(content, name, reference).max() == 0, kind


def transparent_red(kind: str) -> bytes:
    """Wholly transparent, over red."""
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    if kind == "LA":
        return encoded(Image.new("LA", (8, 8), (76, 0)), "PNG")
    if kind == "P":
        image = Image.new("P", (8, 8))
        image.putpalette(RED)
        return encoded(image, "PNG", transparency=0)
    if kind == "tRNS":
        return encoded(image.convert("RGB"), "PNG", transparency=tuple(RED))
    if kind == "WEBP":
        return encoded(image, "WEBP", lossless=True, exact=True)
    if kind == "16 bits":
        return png_of_16_bits(np.full((8, 8, 4), (65535, 0, 0, 0)), "RGBA")
    return encoded(image, "PNG")


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "tRNS", "WEBP", "16 bits"])
@pytest.mark.parametrize("name", PREPROCESSING)
def test_transparent_pixels_are_white_but_for_big_vision(kind, name):
    """Of a file, of an image in memory, and under augmentation."""
    content = transparent_red(kind)
    under = [76] * 3 if kind == "LA" else RED
    color = under if name == "bv_bilinear" else WHITE
    with Image.open(io.BytesIO(content)) as image:
        in_memory = prepare_image(image, 4, name)
    np.testing.assert_array_equal(in_memory, np.full((4, 4, 3), color))
    np.testing.assert_array_equal(decode(content, 4, name, ""), in_memory)
    augmented = load_pixels(content, 4, name, "", (0, 0))
    assert (augmented > 100).all() == (color == WHITE)


def app(number: int, data: bytes) -> bytes:
    return bytes([0xFF, number]) + struct.pack(">H", len(data) + 2) + data


def with_segments(jpeg: bytes, segments) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def described(length: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a" * length
    return exif


NOISE = np.random.default_rng(0).bytes(1_500_000)
PNG = encoded(photograph(1), "PNG")
JPEG = encoded(photograph(1))
WEBP = {"lossless": True}
PROFILE = [
    app(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, 25]) + NOISE[i * 60_000 :][:60_000])
    for i in range(25)
]
EXTENDED_XMP = [
    app(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + NOISE[:65_000])
] * 46
METADATA = {
    "PNG profile": with_chunk(PNG, b"iCCP", b"p\0\0" + zlib.compress(bytes(1_500_000))),
    "PNG text": with_chunk(PNG, b"zTXt", b"p\0\0" + zlib.compress(bytes(2_100_000))),
    "PNG international text": with_chunk(
        PNG, b"iTXt", b"p\0\1\0\0\0" + zlib.compress(bytes(2_100_000))
    ),
    "PNG texts of 45 MB": PNG[:33]
    + 50 * chunk(b"tEXt", b"p\0" + 900_000 * b"a")
    + PNG[33:],
    "PNG bomb": with_chunk(PNG, b"zTXt", b"p\0\0" + zlib.compress(bytes(10**8), 1)),
    "PNG text at the end": PNG[:-12]
    + chunk(b"zTXt", b"p\0\0" + zlib.compress(bytes(2_100_000)))
    + PNG[-12:],
    "PNG EXIF": with_chunk(PNG, b"eXIf", b"MM\0*" + NOISE),
    "PNG damaged text": with_chunk(PNG, b"tEXt", b"p\0abc").replace(b"abc", b"abd"),
    "PNG damaged profile": with_chunk(PNG, b"iCCP", b"p"),
    "PNG short gamma": with_chunk(PNG, b"gAMA", b""),
    "JPEG profile": with_segments(JPEG, PROFILE),
    "JPEG EXIF": encoded(photograph(1), exif=described(60_000)),
    "JPEG XMP": with_segments(JPEG, EXTENDED_XMP),
    "JPEG comments": with_segments(JPEG, [app(0xFE, NOISE[:65_000])] * 40),
    "WEBP": encoded(
        photograph(1), "WEBP", **WEBP, exif=NOISE, xmp=NOISE, icc_profile=NOISE
    ),
    "GIF comment": encoded(photograph(1), "GIF", comment=NOISE[:200_000]),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_does_not_make_an_image_invalid(name):
    kind = name.split()[0]
    plain = encoded(photograph(1), kind, **WEBP if kind == "WEBP" else {})
    expected = decode(plain, 16, "hf_bicubic", "")
    np.testing.assert_array_equal(
        decode(METADATA[name], 16, "hf_bicubic", ""), expected
    )


def test_animated_png_with_metadata_is_still_animated():
    frames = [photograph(i) for i in range(3)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidSample, match="expected a single image"):
        decode(with_chunk(content, b"tEXt", b"p\0a"), 16, "hf_bicubic", "")


def grey_png(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), "PNG")


def test_upper_8_of_16_bits_of_colours():
    values = np.arange(3 * 65536).reshape(256, 256, 3) % 65536
    content = png_of_16_bits(values, "RGB")
    for name in ("hf_bicubic", "bv_bilinear"):
        np.testing.assert_array_equal(decode(content, 256, name, ""), values >> 8)


@pytest.mark.parametrize(
    ("make", "is_read"),
    [
        (lambda v: grey_png(v), True),
        (lambda v: grey_png(v // 16), False),
        (lambda v: grey_png(v // 64), False),
        (lambda v: grey_png(v // 256), False),
        (lambda v: grey_png(0 * v), True),
        (lambda v: png_of_16_bits(np.stack([v // 16] * 3, -1), "RGB"), False),
        (lambda v: png_of_16_bits(np.stack([v // 16, v], -1), "LA"), False),
        (lambda v: png_of_16_bits(np.stack([0 * v, v], -1), "LA"), True),
        (lambda v: png_of_16_bits(np.stack([v // 4] * 3, -1), "RGB"), True),
    ],
)
def test_unscaled_12_bits_are_named(make, is_read):
    """Black silhouettes and dark images of more bits are images."""
    content = make(np.arange(65536).reshape(256, 256))
    if is_read:
        assert decode(content, 16, "hf_bicubic", "").shape == (16, 16, 3)
        return
    for read in (decode, lambda c, *rest: inspect_image(c, "set, record 1")):
        with pytest.raises(InvalidSample, match="multiply its values by 16") as caught:
            read(content, 16, "hf_bicubic", "set, record 1")
        assert caught.value.reason == "unscaled 16 bits"


@pytest.mark.parametrize("mode", ["I", "F", "La"])
def test_image_in_memory_without_a_known_range_is_refused(mode):
    with pytest.raises(DataError, match=f"image 3: has pixels of Pillow's mode {mode}"):
        prepare_image(Image.new(mode, (4, 4)), 4, "hf_bicubic", "image 3")


def test_damaged_image_in_memory_is_named():
    image = Image.open(io.BytesIO(JPEG[:-60]))
    with pytest.raises(DataError, match="image 3: cannot be read"):
        prepare_image(image, 4, "hf_bicubic", "image 3")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_rotation_is_not_applied(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"quality": 90} if kind == "JPEG" else {}
    rotated = encoded(photograph(1), kind, exif=exif, **options)
    plain = encoded(photograph(1), kind, **options)
    for name in ("hf_bicubic", "bv_bilinear"):
        np.testing.assert_array_equal(
            decode(rotated, 16, name, ""), decode(plain, 16, name, "")
        )


@pytest.mark.parametrize("name", ["a.jfif", "a.JPG", "a.tif", "a.txt", "a"])
def test_content_decides_the_format(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(JPEG)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(name, JPEG)
    for path in ("images", "images.zip"):
        content = open_store(str(tmp_path / path), "images").read(name)
        assert image_format(content[:32]) == "JPEG"
        assert decode(content, 16, "hf_bicubic", "").shape == (16, 16, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_format_is_told_by_the_first_bytes(kind):
    content = KINDS[kind](np.random.default_rng(0), (9, 9))
    name = kind.split()[0]
    assert image_format(content[:32]) == (None if name == "TIFF" else name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            encoded(photograph(1), "TIFF"),
            "is TIFF: convert it, .* expected one of JPEG",
        ),
        (b"\0\0\0\x20ftypavif" + bytes(20), "is AVIF: convert it"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "is HEIC: convert it"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is JPEG 2000: convert it"),
        (b"\xff\x0a" + bytes(30), "is JPEG XL: convert it"),
        (b"BM are the first letters of a text", "begins with b'BM are the first"),
        (b"RIFF\0\0\0\0WAVE", "begins with"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_unread_formats_are_named(content, message):
    assert image_format(content) is None
    with pytest.raises(InvalidSample, match=message):
        decode(content, 16, "hf_bicubic", "")


WARNINGS = """
import sys
from hive_jax.data.transforms import decode
for path in sys.argv[1:]:
    decode(open(path, "rb").read(), 8, "hf_bicubic", "")
"""


def test_pillow_does_not_warn(tmp_path):
    """Of palettes with transparency, frames of a phone's JPEG, and damaged EXIF."""
    palette = photograph(1).quantize(16)
    files = [
        encoded(palette, "PNG", transparency=bytes(range(16))),
        with_segments(JPEG, [app(0xE2, b"MPF\0" + NOISE[:3000])]),
        with_segments(JPEG, [app(0xE1, b"Exif\0\0MM\0*" + NOISE[:65_000])]),
    ]
    for number, content in enumerate(files):
        (tmp_path / str(number)).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", WARNINGS, *map(str, sorted(tmp_path.iterdir()))],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == done.stdout == ""


def test_check_says_what_becomes_of_odd_images(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a.png": transparent_red("RGBA"),
        "b.png": transparent_red("P"),
        "c.png": encoded(Image.new("RGBA", (8, 8), (*RED, 255)), "PNG"),
        "d.jpg": encoded(photograph(1), exif=exif),
        "e.png": grey_png(np.full((8, 8), 9000)),
        "f.png": grey_png(np.full((8, 8), 900)),
    }
    (tmp_path / "set/cat").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "set/cat" / name).write_bytes(content)
    for name, fate in {
        "hf_bicubic": "on white",
        "bv_bilinear": "alpha dropped",
    }.items():
        out = tmp_path / name
        # Stage 0 has no weights that decide the preprocessing.
        arguments = ["check", "--config", "configs/stage0.py:siglip"]
        arguments += ["--from", f"folder:{tmp_path / 'set'}", "--out", str(out)]
        assert prepare_data.main([*arguments, "--preprocessing", name]) == 65
        report = json.loads((out / "report.json").read_text())
        assert report["bad_by_reason"] == {"unscaled 16 bits": 1}
        assert report["transparent_images"] == 2 and report["rotated_images"] == 1
        assert report["images_of_16_bits"] == 1 and report["brightest_of_16_bits"] == 35
        printed = capsys.readouterr().out
        assert f"transparent      2, {fate}, with {name}" in printed
        assert "rotated by EXIF  1, which is not applied" in printed
        assert "the brightest is 35 of 255" in printed
