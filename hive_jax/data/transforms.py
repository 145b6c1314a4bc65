"""Images as squares, as an encoder was trained to see them.

The name of the preprocessing is kept in checkpoints: weights trained under one are off
under another.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance

from hive_jax.data.image_io import open_image
from hive_jax.errors import DataError

# PIL's filters, which widen where they shrink (antialiasing), as transformers has them.
_FILTERS = {
    "hf_bicubic": Image.Resampling.BICUBIC,  # SigLIP
    "hf_bilinear": Image.Resampling.BILINEAR,  # SigLIP 2
}
_PAD = "_pad"
PREPROCESSING = (*_FILTERS, *(f"{name}{_PAD}" for name in _FILTERS), "bv_bilinear")
# SigLIP's mean of 0.5, cut as LLaVA and transformers do.
_MEAN_COLOUR = (127, 127, 127)


def pads(preprocessing: str) -> bool:
    """Whether images are made squares before they are resized."""
    return preprocessing.endswith(_PAD)


def resize_image(image: Image.Image, size: int, preprocessing: str) -> np.ndarray:
    """An RGB image as uint8[size, size, 3].

    Args:
      preprocessing: one of PREPROCESSING:
        `hf_bicubic`, `hf_bilinear`: stretched to the square by PIL's filter, bit by
          bit what transformers' SiglipImageProcessor makes of it;
        `hf_bicubic_pad`, `hf_bilinear_pad`: the same, after bars of the mean colour
          have made it a square (LLaVA's `image_aspect_ratio: pad`, transformers'
          LlavaImageProcessor with `do_pad`);
        `bv_bilinear`: stretched as big_vision's `resize(size)` does, which SigLIP's and
          SigLIP 2's own evaluation uses: bit by bit tf.image.resize without
          antialiasing, cut to whole numbers.
    """
    if preprocessing == "bv_bilinear":
        return _bilinear(image, size)
    if pads(preprocessing):
        image = _padded(image)
    resample = _FILTERS[preprocessing.removesuffix(_PAD)]
    return np.asarray(image.resize((size, size), resample))


def _padded(image: Image.Image) -> Image.Image:
    """The image in the middle of a square; of an odd bar the larger half comes last."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), _MEAN_COLOUR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _bilinear(image: Image.Image, size: int) -> np.ndarray:
    """Between the four nearest pixels alone, in float32 and in TensorFlow's order of
    operations, without which some values would be cut to the number below."""
    top, bottom, down = _neighbours(image.height, size)
    left, right, across = _neighbours(image.width, size)
    out = np.empty((size, size, 3), np.uint8)
    # In strips, so that of a large image there is no second copy.
    count = min(size, 1 + image.width * image.height // 2**20)
    for strip in np.array_split(np.arange(size), count):
        first, last = int(top[strip[0]]), int(bottom[strip[-1]]) + 1
        pixels = np.asarray(image.crop((0, first, image.width, last)))
        upper, lower = (
            _between(
                pixels[rows[strip, None] - first, left],
                pixels[rows[strip, None] - first, right],
                across[:, None],
            )
            for rows in (top, bottom)
        )
        out[strip] = _between(upper, lower, down[strip, None, None])
    return out


def _between(first: np.ndarray, last: np.ndarray, share: np.ndarray) -> np.ndarray:
    first = first.astype(np.float32)
    return first + (last.astype(np.float32) - first) * share


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after the centre of each new one, and how far between."""
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    places = centres * (np.float32(length) / np.float32(size)) - np.float32(0.5)
    below = np.floor(places)
    before = np.maximum(below, 0).astype(np.int64)
    after = np.minimum(np.ceil(places), length - 1).astype(np.int64)
    return before, after, places - below


AREA = (0.4, 1.0)  # of the image
RATIO = (0.75, 1.33)  # width / height, uniform in its logarithm
FLIP = 0.5
STRENGTH = 0.2  # factors of 1 - STRENGTH to 1 + STRENGTH
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to one image.

    Attributes:
      box: left, top, right, bottom of the crop, in pixels.
      flip: whether left and right change places.
      colours: (a key of ENHANCERS, factor), in this order.
    """

    box: tuple[int, int, int, int]
    flip: bool
    colours: tuple[tuple[str, float], ...]


def augment_image(
    image: Image.Image, size: int, seed: int, position: int
) -> np.ndarray:
    """An RGB image as uint8[size, size, 3], augmented as sample number `position` of a
    run: a function of these arguments alone."""
    # The last number keeps it apart from [seed, epoch], which the order is drawn from.
    rng = np.random.default_rng([seed, position, 1])
    return apply_augmentation(
        image, draw_augmentation(rng, image.width, image.height), size
    )


def draw_augmentation(
    rng: np.random.Generator, width: int, height: int
) -> Augmentation:
    """Draws what is done to an image of this size."""
    box = _box(rng, width, height)
    flip = bool(rng.random() < FLIP)
    names = [list(ENHANCERS)[i] for i in rng.permutation(len(ENHANCERS))]
    factors = rng.uniform(1 - STRENGTH, 1 + STRENGTH, len(names))
    return Augmentation(box, flip, tuple(zip(names, factors.tolist(), strict=True)))


def apply_augmentation(
    image: Image.Image, augmentation: Augmentation, size: int
) -> np.ndarray:
    """An RGB image as uint8[size, size, 3]: cropped, resized (bicubic), flipped, and
    its colours changed, each step rounded to uint8 as PIL does."""
    image = image.crop(augmentation.box).resize((size, size), Image.Resampling.BICUBIC)
    if augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, factor in augmentation.colours:
        image = ENHANCERS[name](image).enhance(factor)
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


def load_pixels(
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
      InvalidSample: a file that is no image.
      DataError: an array of another shape or dtype.
    """
    wanted = (size, size, 3)
    image = np.zeros(wanted, np.uint8) if image is None else image
    if isinstance(image, bytes):
        if augment is None:
            return decode(image, size, preprocessing, where)
        with open_image(image, where) as whole:
            return augment_image(whole, size, *augment)
    if image.shape != wanted or image.dtype != np.uint8:
        raise DataError(
            f"{where}: image is {image.dtype}{list(image.shape)}; expected "
            f"uint8{list(wanted)}"
        )
    if augment is not None:
        return augment_image(Image.fromarray(image), size, *augment)
    return image


def decode(content: bytes, size: int, preprocessing: str, where: str) -> np.ndarray:
    """An image file as uint8[size, size, 3].

    Args:
      preprocessing: see hive_jax/data/transforms.py.
      where: the file and the record, for errors.

    Raises:
      InvalidSample: as `open_image`.
    """
    with open_image(content, where, as_square=pads(preprocessing)) as image:
        return resize_image(image, size, preprocessing)
