"""Reading image files within bounds of size and memory."""

import contextlib
import dataclasses
import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.memory_budget import MemoryBudget
from hive_jax.data.png_metadata import strip_png_metadata
from hive_jax.data.rgb_conversion import brightest, is_transparent, to_rgb
from hive_jax.file_content import explain_content

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
_open_pixels = MemoryBudget(MAX_PIXELS)
# Of palettes, large images, damaged EXIF: they would be printed into progress bars, and
# what matters of them is an InvalidSample or a line of `prepare_data check`. Python's
# context manager for this is not safe with threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
    content: bytes, where: str, *, as_square: bool = False, drop_alpha: bool = False
) -> Iterator[Image.Image]:
    """Decodes an image file to RGB as `to_rgb`; waits until its pixels fit in memory.

    EXIF rotation and colour profiles are not applied, as by transformers' processors
    and by big_vision. All threads together hold at most MAX_PIXELS.

    Args:
      content: the bytes of the file.
      where: the file and record, for errors.
      as_square: count the pixels of the square that the image will be padded to.
      drop_alpha: see `to_rgb`.

    Raises:
      InvalidSample: the content is not a still image, is damaged, or has too many
        pixels, which is told by its header; or see `to_rgb`.
    """
    with _decoded(content, where, as_square) as image:
        # Not around the `yield`: errors of the caller are not the file's.
        with pillow_errors(where):
            image = to_rgb(image, where, drop_alpha, _bits(content))
        yield image


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What an image file is before its conversion to RGB.

    Attributes:
      mode: Pillow's: RGB, L, CMYK, ...
      is_transparent: whether pixels are not opaque.
      is_rotated: whether EXIF says to rotate or mirror it.
      brightest: of a file of 16 bits, the largest upper half, 0 to 255; else None.
    """

    mode: str
    is_transparent: bool
    is_rotated: bool
    brightest: int | None


def inspect_image(content: bytes, where: str, as_square: bool = False) -> ImageInfo:
    """Decodes an image file as `open_image`, to see that it can be and what it is.

    Args:
      content: the bytes of the file.
      where: the file and record, for errors.
      as_square: see `open_image`.

    Raises:
      InvalidSample: see `open_image`.
    """
    with _decoded(content, where, as_square) as image, pillow_errors(where):
        highest = None
        if _bits(content) == 16:
            highest = brightest(image) // (256 if image.mode.startswith("I") else 1)
        info = ImageInfo(image.mode, is_transparent(image), _is_rotated(image), highest)
        to_rgb(image, where, bits=_bits(content))
    return info


@contextlib.contextmanager
def _decoded(content: bytes, where: str, as_square: bool) -> Iterator[Image.Image]:
    """The image in the mode of its file. Raises InvalidSample."""
    name = image_format(content)
    if name is None:
        raise _not_an_image(content, where)
    if name == "PNG":
        content = strip_png_metadata(content)
    with pillow_errors(where):
        image = Image.open(io.BytesIO(content), formats=[name])
    # From the header, before any pixel is decoded: a few kilobytes may unpack to
    # gigabytes.
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
        with pillow_errors(where):
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise InvalidSample("animated", where, "expected a single image")
            image.load()
        yield image


def _bits(content: bytes) -> int:
    """Bits of a colour in an image file, which Pillow does not tell."""
    # Of the header, which is always the first chunk.
    return content[24] if image_format(content) == "PNG" else 8


def _is_rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except _DECODING_ERRORS:  # damaged EXIF does not change the pixels
        return False


def _not_an_image(content: bytes, where: str) -> InvalidSample:
    detail = f"begins with {content[:16]!r}" if content else "the file is empty"
    if unread := unread_format(content):
        detail = f"is {unread}: convert it, for instance to PNG"
    elif explanation := explain_content(content):
        detail = explanation
    return InvalidSample(
        "not an image", where, f"{detail}; expected one of {', '.join(_FORMATS)}"
    )


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8[height, width, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


@contextlib.contextmanager
def pillow_errors(where: str) -> Iterator[None]:
    """Raises Pillow's errors as InvalidSample.

    Args:
      where: names the image in errors.
    """
    try:
        yield
    except InvalidSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidSample("too large", where, str(error)) from None
    except UnidentifiedImageError:
        raise InvalidSample("damaged", where, "its header cannot be read") from None
    except _DECODING_ERRORS as error:
        raise InvalidSample("damaged", where, f"cannot be read: {error}") from None
