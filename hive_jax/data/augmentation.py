"""Random crops, flips and colours of training images, as in the paper's table 4."""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance

AREA = (0.4, 1.0)  # of the crop, as a share of the image
RATIO = (0.75, 1.33)  # width / height of the crop, log-uniform
FLIP = 0.5
STRENGTH = 0.2  # enhancement factors of 1 - STRENGTH to 1 + STRENGTH
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random numbers of one image's augmentation.

    Attributes:
      box: left, top, right, bottom of the crop, in pixels.
      flip: whether to mirror it horizontally.
      colours: (a key of ENHANCERS, factor), in the order they are applied.
    """

    box: tuple[int, int, int, int]
    flip: bool
    colours: tuple[tuple[str, float], ...]


def augment_image(
    image: Image.Image, size: int, seed: int, position: int
) -> np.ndarray:
    """Crops, flips and jitters an RGB image; a function of the arguments alone.

    As torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter on PIL
    images. Crops are resized by PIL's bicubic filter, whatever the preprocessing.

    Args:
      image: the image.
      size: height and width of the result, in pixels.
      seed: of the run.
      position: of the sample in the run.

    Returns:
      uint8[size, size, 3].
    """
    # The last number tells it from [seed, epoch], which the sampler uses.
    rng = np.random.default_rng([seed, position, 1])
    drawn = draw_augmentation(rng, image.width, image.height)
    return apply_augmentation(image, drawn, size)


def draw_augmentation(
    rng: np.random.Generator, width: int, height: int
) -> Augmentation:
    """Draws the augmentation of an image.

    Args:
      rng: random numbers.
      width: of the image, in pixels.
      height: of the image, in pixels.
    """
    box = _draw_box(rng, width, height)
    flip = bool(rng.random() < FLIP)
    # In random order, as ColorJitter applies them.
    names = [list(ENHANCERS)[i] for i in rng.permutation(len(ENHANCERS))]
    factors = rng.uniform(1 - STRENGTH, 1 + STRENGTH, len(names))
    return Augmentation(box, flip, tuple(zip(names, factors.tolist(), strict=True)))


def apply_augmentation(
    image: Image.Image, augmentation: Augmentation, size: int
) -> np.ndarray:
    """Crops, resizes (bicubic), flips and jitters an RGB image, rounding to uint8 at
    each step as PIL does.

    Args:
      image: the image.
      augmentation: what to apply.
      size: height and width of the result, in pixels.

    Returns:
      uint8[size, size, 3].
    """
    image = image.crop(augmentation.box)
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, factor in augmentation.colours:
        image = ENHANCERS[name](image).enhance(factor)
    return np.asarray(image)


def _draw_box(
    rng: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
    """Draws a crop box: ten tries, then the largest central one of an allowed ratio."""
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
