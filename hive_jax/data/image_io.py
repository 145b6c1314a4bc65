"""Image files, decoded within bounds of size and memory."""

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from hive_jax.data.invalid import InvalidSample

# By content, whatever the file is called. No format whose reader starts a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ANIMATED = ("PNG", "WEBP", "GIF")  # a JPEG of several frames is one of a phone
MAX_SIDE = 30_000
MAX_PIXELS = 40_000_000  # of up to 20 bytes while they are decoded (lossless WebP)
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
# The C library keeps freed blocks of up to 32 MiB, for each thread anew; larger ones go
# back to the system.
Image.core.set_block_size(2**29)


@contextlib.contextmanager
def open_image(
    content: bytes, where: str, as_square: bool = False
) -> Iterator[Image.Image]:
    """The image of a file in RGB, while there is memory for it.

    Palettes, grey and CMYK become RGB and transparency is dropped, as PIL's
    `convert` does; of 16 bits the upper 8 are kept. EXIF rotation is not applied, as
    in LLaVA's and SigLIP's training. All threads together have at most MAX_PIXELS
    open, and wait for each other.

    Args:
      where: the file and the record, for errors.
      as_square: the image will be padded to a square, whose pixels count.

    Raises:
      InvalidSample: the content is no still image, is damaged, or has too many pixels,
        which the header alone decides.
    """
    with _errors_named(content, where):
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
    with _open_pixels.taken(pixels):
        with _errors_named(content, where):
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise InvalidSample("animated", where, "expected a single image")
            image = _rgb(image)
        yield image


def image_mode(content: bytes) -> str:
    """PIL's name for how an image file has its pixels: RGB, L, CMYK, ..."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return image.mode


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8[height, width, 3] as a file that keeps every bit."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):  # which `convert` would cut at 255
        image = image.point(lambda value: value / 256).convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _errors_named(content: bytes, where: str) -> Iterator[None]:
    """What Pillow raises, as InvalidSample."""
    try:
        yield
    except InvalidSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidSample("too large", where, str(error)) from None
    except UnidentifiedImageError:
        detail = f"{_beginning(content)}; expected one of {', '.join(_FORMATS)}"
        raise InvalidSample("not an image", where, detail) from None
    except _DECODING_ERRORS as error:
        raise InvalidSample("damaged", where, f"cannot be read: {error}") from None


def _beginning(content: bytes) -> str:
    return f"begins with {content[:16]!r}" if content else "the file is empty"


class _Budget:
    """What all threads together may have at one time."""

    def __init__(self, total: int):
        self._left = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Waits until there is as much, and gives it back at the end."""
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
