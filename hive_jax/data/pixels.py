"""The pixels of a sample's image, as a model takes them."""

import numpy as np
from PIL import Image

from hive_jax.data.augment import augmented
from hive_jax.data.images import decode, opened
from hive_jax.errors import DataError


def pixels(
    image: np.ndarray | bytes | None,
    size: int,
    preprocessing: str,
    where: str,
    augment: tuple[int, int] | None = None,
) -> np.ndarray:
    """A sample's image as uint8[size, size, 3]; zeros for None.

    Args:
      where: names the sample, for errors.
      augment: seed and position of the run that it is augmented for; None for as it is.

    Raises:
      BadSample: a file that is no image.
      DataError: an array of another shape or dtype.
    """
    wanted = (size, size, 3)
    image = np.zeros(wanted, np.uint8) if image is None else image
    if isinstance(image, bytes):
        if augment is None:
            return decode(image, size, preprocessing, where)
        with opened(image, where) as whole:
            return augmented(whole, size, *augment)
    if image.shape != wanted or image.dtype != np.uint8:
        raise DataError(
            f"{where}: image is {image.dtype}{list(image.shape)}; expected "
            f"uint8{list(wanted)}"
        )
    if augment is not None:
        return augmented(Image.fromarray(image), size, *augment)
    return image
