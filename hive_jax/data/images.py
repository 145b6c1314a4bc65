"""Image files as the encoder was trained to see them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from hive_jax.data.bad import BadSample

# PIL's filters by the name of the preprocessing. The name is kept in checkpoints:
# weights trained under one are off under another.
PREPROCESSING = {
    "hf_bicubic": Image.Resampling.BICUBIC,  # SigLIP
    "hf_bilinear": Image.Resampling.BILINEAR,  # SigLIP 2
}
# By content, whatever the file is called. No format whose reader starts a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ANIMATED = ("PNG", "WEBP", "GIF")  # a JPEG of several frames is one of a phone
MAX_PIXELS = 64_000_000
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


def decode(content: bytes, size: int, preprocessing: str, where: str) -> np.ndarray:
    """An image file as uint8[size, size, 3]: RGB, resized to the square by PIL's
    filter, as transformers' SiglipImageProcessor does.

    Palettes, grey and CMYK become RGB and transparency is dropped, as PIL's
    `convert` does; of 16 bits the upper 8 are kept. EXIF rotation is not applied, as
    in LLaVA's and SigLIP's training.

    Args:
      preprocessing: a key of PREPROCESSING.
      where: the file and the record, for errors.

    Raises:
      BadSample: the content is no still image, is damaged, or has too many pixels,
        which the header alone decides.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                detail = f"{pixels:,} pixels; expected at most {MAX_PIXELS:,}"
                raise BadSample("too large", where, detail)
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise BadSample("animated", where, "expected a single image")
            square = _rgb(image).resize((size, size), PREPROCESSING[preprocessing])
            return np.asarray(square)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("too large", where, str(error)) from None
    except UnidentifiedImageError:
        detail = f"{_beginning(content)}; expected one of {', '.join(_FORMATS)}"
        raise BadSample("not an image", where, detail) from None
    except _DECODING_ERRORS as error:
        raise BadSample("damaged", where, f"cannot be read: {error}") from None


def mode_of(content: bytes) -> str:
    """PIL's name for how an image file has its pixels: RGB, L, CMYK, ..."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return image.mode


def as_png(pixels: np.ndarray) -> bytes:
    """uint8[height, width, 3] as a file that keeps every bit."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # which `convert` would cut at 255
        upper = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _beginning(content: bytes) -> str:
    return f"begins with {content[:16]!r}" if content else "the file is empty"
