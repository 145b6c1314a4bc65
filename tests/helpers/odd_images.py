"""Image files of the kinds that people have beside RGB JPEGs, drawn from seeds."""

import functools
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from helpers.llava_sets import encoded

SIZES = [(1, 1), (1, 300), (300, 1), (7, 513), (60, 40), (33, 34), (224, 128)]
# 16 bits of grey: the reference of hf_* clips them at 255, and the product does not.
SIXTEEN_BITS = ("PNG I;16", "PNG I;16 tRNS", "TIFF I;16", "TIFF I;16B")
REFUSED = ("TIFF I", "TIFF F")
_PNG_COLOURS = {"RGB": 2, "LA": 4, "RGBA": 6}


def odd_images(count: int) -> Iterator[tuple[str, bytes]]:
    """(Kind, file) of images number 0 to `count` - 1, the kinds and sizes in turn."""
    kinds = list(KINDS)
    for number in range(count):
        rng, kind = np.random.default_rng(number), kinds[number % len(kinds)]
        size = SIZES[(number + number // len(kinds)) % len(SIZES)]
        yield kind, KINDS[kind](rng, size)


def drawn(rng: np.random.Generator, size, mode: str) -> Image.Image:
    """Soft shapes under noise; about a third of the alpha is 0, and a third 255."""
    planes = []
    for band in Image.new(mode, (1, 1)).getbands():
        small = Image.fromarray(rng.integers(0, 256, (4, 5), np.uint8))
        soft = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
        noisy = soft + rng.normal(0, 9, soft.shape)
        noisy = 3 * noisy - 255 if band == "A" else noisy
        planes.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return planes[0] if len(planes) == 1 else Image.merge(mode, planes)


def file(rng, size, kind: str, mode: str, **options) -> bytes:
    return encoded(drawn(rng, size, mode), kind, **options)


def palette(rng, size, kind: str, **options) -> bytes:
    """Of 16 colours, the fourth of them transparent if `options` say so."""
    return encoded(drawn(rng, size, "RGB").quantize(16), kind, **options)


def converted(rng, size, kind: str, mode: str) -> bytes:
    start = "RGBA" if mode == "PA" else "L" if mode in ("I", "F", "1") else "RGB"
    return encoded(drawn(rng, size, start).convert(mode), kind)


def transparent_colour(rng, size, mode: str) -> bytes:
    image = drawn(rng, size, mode)
    return encoded(image, "PNG", transparency=image.getpixel((0, 0)))


def grey_of_16_bits(rng, size, kind: str, dtype: str, transparent=False) -> bytes:
    values = np.asarray(drawn(rng, size, "L")) * np.uint16(257)
    values[0, 0] = 40_000
    content = encoded(Image.fromarray(values.astype(dtype)), kind)
    if transparent:
        content = with_chunk(content, b"tRNS", struct.pack(">H", 40_000))
    return content


def colour_of_16_bits(rng, size, mode: str) -> bytes:
    """A PNG, which Pillow reads and cannot write."""
    planes = np.asarray(drawn(rng, size, mode)).astype(np.uint16)
    return png_of_16_bits(planes * 256 + rng.integers(0, 256, planes.shape), mode)


def png_of_16_bits(values: np.ndarray, mode: str) -> bytes:
    """A PNG of 16 bits of [height, width, channels], mode LA, RGB or RGBA."""
    height, width = values.shape[:2]
    colours = _PNG_COLOURS[mode]
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks.items())


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with a chunk more, after its header."""
    return png[:33] + chunk(kind, data) + png[33:]


def rotated(rng, size, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(rng, size, kind, "RGB", quality=90, exif=exif)


_part = functools.partial
KINDS: dict[str, Callable] = {
    "PNG 1": _part(converted, kind="PNG", mode="1"),
    "PNG L": _part(file, kind="PNG", mode="L"),
    "PNG LA": _part(file, kind="PNG", mode="LA"),
    "PNG P": _part(palette, kind="PNG"),
    "PNG P, a transparent colour": _part(palette, kind="PNG", transparency=3),
    "PNG P, alpha of each colour": _part(
        palette, kind="PNG", transparency=bytes(range(0, 256, 16))
    ),
    "PNG L tRNS": _part(transparent_colour, mode="L"),
    "PNG RGB": _part(file, kind="PNG", mode="RGB"),
    "PNG RGB tRNS": _part(transparent_colour, mode="RGB"),
    "PNG RGBA": _part(file, kind="PNG", mode="RGBA"),
    "PNG I;16": _part(grey_of_16_bits, kind="PNG", dtype="<u2"),
    "PNG I;16 tRNS": _part(grey_of_16_bits, kind="PNG", dtype="<u2", transparent=True),
    "PNG RGB of 16 bits": _part(colour_of_16_bits, mode="RGB"),
    "PNG RGBA of 16 bits": _part(colour_of_16_bits, mode="RGBA"),
    "PNG LA of 16 bits": _part(colour_of_16_bits, mode="LA"),
    "JPEG L": _part(file, kind="JPEG", mode="L"),
    "JPEG CMYK": _part(file, kind="JPEG", mode="CMYK"),
    "JPEG progressive": _part(file, kind="JPEG", mode="RGB", progressive=True),
    "JPEG rotated": _part(rotated, kind="JPEG"),
    "WEBP RGB": _part(file, kind="WEBP", mode="RGB", quality=70),
    "WEBP RGBA": _part(file, kind="WEBP", mode="RGBA", quality=70),
    "WEBP RGBA lossless": _part(
        file, kind="WEBP", mode="RGBA", lossless=True, exact=True
    ),
    "WEBP rotated": _part(rotated, kind="WEBP"),
    "GIF L": _part(file, kind="GIF", mode="L"),
    "GIF P": _part(palette, kind="GIF"),
    "GIF P, a transparent colour": _part(palette, kind="GIF", transparency=3),
    "BMP 1": _part(converted, kind="BMP", mode="1"),
    "BMP L": _part(file, kind="BMP", mode="L"),
    "BMP P": _part(palette, kind="BMP"),
    "BMP RGB": _part(file, kind="BMP", mode="RGB"),
    "BMP RGBA": _part(file, kind="BMP", mode="RGBA"),
    "TIFF RGBA": _part(file, kind="TIFF", mode="RGBA"),
    "TIFF PA": _part(converted, kind="TIFF", mode="PA"),
    "TIFF CMYK": _part(file, kind="TIFF", mode="CMYK"),
    "TIFF LAB": _part(file, kind="TIFF", mode="LAB"),
    "TIFF I;16": _part(grey_of_16_bits, kind="TIFF", dtype="<u2"),
    "TIFF I;16B": _part(grey_of_16_bits, kind="TIFF", dtype=">u2"),
    "TIFF I": _part(converted, kind="TIFF", mode="I"),
    "TIFF F": _part(converted, kind="TIFF", mode="F"),
}
