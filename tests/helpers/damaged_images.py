"""Damaged and hostile image files, each with the reason that it is rejected for."""

import struct
import zlib

from helpers.llava_sets import encoded, photograph


def animated(kind: str) -> bytes:
    frames = [photograph(i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def huge(width=9000, height=9000) -> bytes:
    """A PNG whose header alone says that it has so many pixels."""
    content = bytearray(encoded(photograph(1), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


JPEG = encoded(photograph(1, (200, 200)), quality=90)
PNG = encoded(photograph(1, (200, 200)), "PNG")
DAMAGED = {
    "empty": (b"", "not an image"),
    "page": (b"<html>404 not found</html>", "not an image"),
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
