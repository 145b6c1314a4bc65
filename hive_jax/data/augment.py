"""Random crops, flips and colours: the augmentation of the paper's table 4.

What is drawn and what is done with it are apart. Both are torchvision's, as
RandomResizedCrop, RandomHorizontalFlip and ColorJitter do them on PIL's images.
Crops are resized by PIL's bicubic filter, whatever the preprocessing is without them.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance

AREA = (0.4, 1.0)  # of the image
RATIO = (0.75, 1.33)  # width / height, uniform in its logarithm
FLIP = 0.5
STRENGTH = 0.2  # factors of 1 - STRENGTH to 1 + STRENGTH
COLOURS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What is done to one image.

    Attributes:
      box: left, top, right, bottom of the crop, in pixels.
      flip: whether left and right change places.
      colours: (a key of COLOURS, factor), in this order.
    """

    box: tuple[int, int, int, int]
    flip: bool
    colours: tuple[tuple[str, float], ...]


def augmented(image: Image.Image, size: int, seed: int, position: int) -> np.ndarray:
    """An RGB image as uint8[size, size, 3], augmented as sample number `position` of a
    run: a function of these arguments alone."""
    # The last number keeps it apart from [seed, epoch], which the order is drawn from.
    rng = np.random.default_rng([seed, position, 1])
    return apply(image, parameters(rng, image.width, image.height), size)


def parameters(rng: np.random.Generator, width: int, height: int) -> Parameters:
    """Draws what is done to an image of this size."""
    box = _box(rng, width, height)
    flip = bool(rng.random() < FLIP)
    names = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))]
    factors = rng.uniform(1 - STRENGTH, 1 + STRENGTH, len(names))
    return Parameters(box, flip, tuple(zip(names, factors.tolist(), strict=True)))


def apply(image: Image.Image, parameters: Parameters, size: int) -> np.ndarray:
    """An RGB image as uint8[size, size, 3]: cropped, resized (bicubic), flipped, and
    its colours changed, each step rounded to uint8 as PIL does."""
    image = image.crop(parameters.box).resize((size, size), Image.Resampling.BICUBIC)
    if parameters.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, factor in parameters.colours:
        image = COLOURS[name](image).enhance(factor)
    return np.asarray(image)


def _box(
    rng: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
    """Ten tries to find one inside of the image; else the largest in its middle that
    has an allowed ratio."""
    for _ in range(10):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers((width - w + 1, height - h + 1)).tolist()
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
