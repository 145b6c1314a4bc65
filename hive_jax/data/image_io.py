"""Reading image files within bounds of size and memory."""

import contextlib
import io
import re
import struct
import threading
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from hive_jax.data.invalid import InvalidSample

# Detected from the content, not the suffix. EPS and others are excluded, because Pillow
# starts another program to read them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    # The size of the header that follows tells it from a text that begins with "BM".
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb".{4}ftyp(avif|avis)",
    "HEIC": rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
}
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
        image = Image.open(io.BytesIO(content), formats=FORMATS)
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


def require_size(size: int, where: str) -> None:
    """Raises InvalidSample if a file of `size` bytes is too large to read.

    Args:
      size: in bytes.
      where: the file and record, for the error.
    """
    if size > MAX_BYTES:
        detail = f"{size:,} bytes; expected at most {MAX_BYTES:,}"
        raise InvalidSample("too large", where, detail)


def image_format(header: bytes) -> str:
    """Returns the format of an image file: "JPEG", "TIFF", ...; "" if it is none.

    Args:
      header: the first 32 bytes of the file, or more.
    """
    for name, pattern in _SIGNATURES.items():
        if re.match(pattern, header, re.DOTALL):
            return name
    return ""


def image_mode(content: bytes) -> str:
    """Returns PIL's mode of an image file: RGB, L, CMYK, ..."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
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
        detail = f"{start}; expected one of {', '.join(FORMATS)}"
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
