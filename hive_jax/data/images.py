"""Image files as the encoder was trained to see them."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from hive_jax.errors import DataError

# PIL's filters by the name of the preprocessing. The name is kept in checkpoints:
# weights trained under one are off under another.
PREPROCESSING = {
    "hf_bicubic": Image.Resampling.BICUBIC,  # SigLIP
    "hf_bilinear": Image.Resampling.BILINEAR,  # SigLIP 2
}
_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_PIXELS = 64_000_000
# What Pillow raises for damaged files, depending on where the damage is.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path, size: int, preprocessing: str) -> np.ndarray:
    """A file as uint8[size, size, 3]: RGB, resized to the square by PIL's filter, as
    transformers' SiglipImageProcessor does.

    Args:
      preprocessing: a key of PREPROCESSING.

    Raises:
      DataError: the file is no JPEG, PNG or WebP, is damaged, or too large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels <= _MAX_PIXELS:
                square = (size, size)
                resample = PREPROCESSING[preprocessing]
                return np.asarray(image.convert("RGB").resize(square, resample))
    except _DECODING_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None
    raise DataError(f"{path}: {pixels:,} pixels; expected at most {_MAX_PIXELS:,}")
