"""Image files as the encoder was trained to see them."""

from pathlib import Path

import numpy as np
from PIL import Image

from hive_jax.errors import DataError

# Named in checkpoints: weights trained under one preprocessing are off under another.
PREPROCESSING = "hf_bicubic"
_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_PIXELS = 64_000_000


def read_image(path: Path, size: int) -> np.ndarray:
    """A file as uint8[size, size, 3]: RGB, resized to the square by PIL's bicubic
    filter, as transformers' SiglipImageProcessor does.

    Raises:
      DataError: the file is no JPEG, PNG or WebP, is damaged, or too large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels; expected at most "
                    f"{_MAX_PIXELS:,}"
                )
            rgb = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None
    return np.asarray(rgb)
