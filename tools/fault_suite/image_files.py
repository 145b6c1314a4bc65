"""Image files that are good, damaged and hostile, made in memory."""

import io
import pickle
import struct
import zlib

import numpy as np
from PIL import Image


def photograph(
    number: int, size: tuple[int, int] = (40, 30), mode: str = "RGB"
) -> Image.Image:
    """Returns soft shapes, as JPEG likes them.

    Args:
      number: another picture for each.
      size: width and height.
      mode: of Pillow.
    """
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (4, 5, 3), np.uint8)
    big = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return big.convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """Returns the content of a file.

    Args:
      image: the picture.
      kind: format, as Pillow names it.
      **options: of Pillow's writer.
    """
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    """Returns a file of three frames in a format."""
    frames = [photograph(i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def huge(width: int = 9000, height: int = 9000) -> bytes:
    """Returns a small PNG whose header alone says that it has so many pixels."""
    content = bytearray(encoded(photograph(1), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


JPEG = encoded(photograph(1, (200, 200)), quality=90)
PNG = encoded(photograph(1, (200, 200)), "PNG")
# Name -> content, and the reason that it is counted by.
DAMAGED = {
    "empty": (b"", "not an image"),
    "page": (b"<html>404 not found</html>", "not an image"),
    "zeros": (bytes(3000), "not an image"),
    "pickle": (pickle.dumps(PNG), "not an image"),
    "vector": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "start": (b"\xff\xd8\xff", "damaged"),
    "cut": (JPEG[:-500], "damaged"),
    "cut in the header": (PNG[:20], "damaged"),
    "cut png": (PNG[: len(PNG) // 2], "damaged"),
    "rotten": (PNG[:60] + bytes(50) + PNG[110:], "damaged"),
    "huge": (huge(), "too large"),
    "huge for Pillow": (huge(12_000, 12_000), "too large"),
    "bomb for Pillow": (huge(100_000, 100_000), "too large"),
    "long": (huge(30_001, 1), "too large"),
    "high": (huge(1, 30_001), "too large"),
    "gif": (animated("GIF"), "animated"),
    "webp": (animated("WEBP"), "animated"),
    "apng": (animated("PNG"), "animated"),
    "tiff": (encoded(photograph(1), "TIFF"), "not an image"),
}
