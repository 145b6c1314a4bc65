"""Position embeddings for images of another size."""

import math

import numpy as np


def resize_positions(position: np.ndarray, num_patches: int) -> np.ndarray:
    """float32[1, P, D] of a square grid -> [1, num_patches, D] of another one.

    Linear interpolation with the corners of both grids on each other, as big_vision's
    image tower does when it loads weights. The same number of patches changes nothing.

    Raises:
      ValueError: a number of patches is not a square.
    """
    _, old, width = position.shape
    for count in (old, num_patches):
        if count == 0 or math.isqrt(count) ** 2 != count:
            raise ValueError(f"{count} patches; expected those of a square grid")
    if old == num_patches:
        return position
    import scipy.ndimage

    side, wanted = math.isqrt(old), math.isqrt(num_patches)
    grid = position.reshape(side, side, width)
    grid = scipy.ndimage.zoom(grid, (wanted / side, wanted / side, 1), order=1)
    return grid.reshape(1, num_patches, width)
