"""Reading image files within bounds of size and memory."""

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from hive_jax.data.invalid import InvalidSample

# Detected from the content, not the suffix. EPS and others are excluded, because Pillow
# starts another program to read them, and TIFF because libtiff prints to stderr.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
HEADER_BYTES = 32  # that `image_format` needs
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
# Sizes of the second header of a BMP: of two letters alone, a text may begin with.
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_UNREAD_SIGNATURES = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
}
_UNREAD_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC"}
_UNREAD_BRANDS |= {b"mif1": "HEIC", b"msf1": "HEIC"}
_ANIMATED = ("PNG", "WEBP", "GIF")  # phones write still JPEGs of several frames
MAX_SIDE = 30_000
MAX_PIXELS = 40_000_000  # each up to 20 bytes while decoding (lossless WebP)
MAX_BYTES = 64_000_000
# What Pillow raises for damaged files, depending on where the damage is.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)
# malloc caches freed blocks of up to 32 MiB in each thread; larger ones are returned
# to the system, so that decoding in many threads does not accumulate memory.
Image.core.set_block_size(2**29)


def image_format(header: bytes) -> str | None:
    """Returns the format of an image file, of those that are read; None for others.

    Args:
      header: the first HEADER_BYTES of the file, or more.

    Returns:
      Pillow's name: JPEG, PNG, WEBP, GIF or BMP.
    """
    for signature, name in _SIGNATURES.items():
        if header.startswith(signature):
            return name
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        return "WEBP"
    is_bmp = header[:2] == b"BM"
    if is_bmp and int.from_bytes(header[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def unread_format(header: bytes) -> str | None:
    """Returns the name of an image format that is not read, such as TIFF; else None.

    Args:
      header: the first HEADER_BYTES of the file, or more.
    """
    if header[4:8] == b"ftyp":
        return _UNREAD_BRANDS.get(header[8:12])
    for signature, name in _UNREAD_SIGNATURES.items():
        if header.startswith(signature):
            return name
    return "SVG" if header.lstrip().startswith(b"<svg") else None


def require_size(size: int, where: str) -> None:
    """Raises InvalidSample if a file of `size` bytes is too large to read.

    Args:
      size: in bytes.
      where: the file and record, for the error.
    """
    if size > MAX_BYTES:
        detail = f"{size:,} bytes; expected at most {MAX_BYTES:,}"
        raise InvalidSample("too large", where, detail)


@contextlib.contextmanager
def open_image(
    content: bytes, where: str, as_square: bool = False
) -> Iterator[Image.Image]:
    """Decodes an image file to RGB; waits until its pixels fit in memory.

    Palettes, grey and CMYK become RGB and transparency is dropped, as PIL's `convert`
    does; of 16 bits the upper 8 are kept. EXIF rotation is not applied, as in LLaVA's
    and SigLIP's training. All threads together hold at most MAX_PIXELS.

    Args:
      content: the bytes of the file.
      where: the file and record, for errors.
      as_square: count the pixels of the square that the image will be padded to.

    Raises:
      InvalidSample: the content is not a still image, is damaged, or has too many
        pixels, which is told by its header.
    """
    with _pillow_errors(content, where):
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    width, height = image.size
    pixels = max(width, height) ** 2 if as_square else width * height
    if pixels > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InvalidSample(
            "too large",
            where,
            f"{width:,} x {height:,} pixels{' to be padded' if as_square else ''}; "
            f"expected at most {MAX_PIXELS:,}, and {MAX_SIDE:,} a side",
        )
    with _open_pixels.reserve(pixels):
        with _pillow_errors(content, where):
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise InvalidSample("animated", where, "expected a single image")
            image = to_rgb(image)
        yield image


def image_mode(content: bytes) -> str:
    """Returns PIL's mode of an image file: RGB, L, CMYK, ..."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return image.mode


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8[height, width, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a Pillow image to RGB; of 16 bits per channel, the upper 8 are used."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
        image = image.point(lambda value: value / 256).convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _pillow_errors(content: bytes, where: str) -> Iterator[None]:
    """Raises Pillow's errors as InvalidSample."""
    try:
        yield
    except InvalidSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidSample("too large", where, str(error)) from None
    except UnidentifiedImageError:
        start = f"begins with {content[:16]!r}" if content else "the file is empty"
        detail = f"{start}; expected one of {', '.join(_FORMATS)}"
        raise InvalidSample("not an image", where, detail) from None
    except _DECODING_ERRORS as error:
        raise InvalidSample("damaged", where, f"cannot be read: {error}") from None


class _Budget:
    """An amount of memory that threads share.

    Args:
      total: limit of all concurrent reservations together.
    """

    def __init__(self, total: int):
        self._left = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Waits until the amount is free, and frees it again at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


_open_pixels = _Budget(MAX_PIXELS)
