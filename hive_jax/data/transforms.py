"""From image files to the square uint8 images that encoders take.

Checkpoints record the name of the preprocessing: weights trained with one lose accuracy
with another.
"""

import numpy as np
from PIL import Image

from hive_jax.data.augmentation import augment_image
from hive_jax.data.image_io import open_image, pillow_errors
from hive_jax.data.rgb_conversion import to_rgb
from hive_jax.errors import DataError

# PIL's filters, which antialias where they shrink, as transformers uses them.
_FILTERS = {
    "hf_bicubic": Image.Resampling.BICUBIC,  # SigLIP
    "hf_bilinear": Image.Resampling.BILINEAR,  # SigLIP 2
}
_PAD = "_pad"
PREPROCESSING = (*_FILTERS, *(f"{name}{_PAD}" for name in _FILTERS), "bv_bilinear")
# SigLIP's mean of 0.5 as an integer, cut as LLaVA and transformers do.
_MEAN_COLOUR = (127, 127, 127)


def load_pixels(
    image: np.ndarray | bytes | None,
    size: int,
    preprocessing: str,
    where: str,
    augment: tuple[int, int] | None = None,
) -> np.ndarray:
    """Returns a sample's image as uint8[size, size, 3]; zeros for None.

    Args:
      image: of a Sample.
      size: height and width, in pixels.
      preprocessing: one of PREPROCESSING.
      where: the file and record, for errors.
      augment: (seed, position in the run) of the augmentation; None to skip it.

    Raises:
      InvalidSample: a file that is not an image.
      DataError: an array of another shape or dtype.
    """
    shape = (size, size, 3)
    image = np.zeros(shape, np.uint8) if image is None else image
    if isinstance(image, bytes):
        if augment is None:
            return decode(image, size, preprocessing, where)
        # The whole image: a crop of the resized one would be enlarged again.
        drop_alpha = drops_alpha(preprocessing)
        with open_image(image, where, drop_alpha=drop_alpha) as whole:
            return augment_image(whole, size, *augment)
    if image.shape != shape or image.dtype != np.uint8:
        raise DataError(
            f"{where}: image is {image.dtype}{list(image.shape)}; expected "
            f"uint8{list(shape)}"
        )
    if augment is not None:
        return augment_image(Image.fromarray(image), size, *augment)
    return image


def decode(content: bytes, size: int, preprocessing: str, where: str) -> np.ndarray:
    """Decodes and resizes an image file to uint8[size, size, 3].

    Args:
      content: the bytes of the file.
      size: height and width, in pixels.
      preprocessing: one of PREPROCESSING.
      where: the file and record, for errors.

    Raises:
      InvalidSample: see `open_image`.
    """
    as_square, drop_alpha = pads(preprocessing), drops_alpha(preprocessing)
    with open_image(
        content, where, as_square=as_square, drop_alpha=drop_alpha
    ) as image:
        return resize_image(image, size, preprocessing)


def prepare_image(
    image: Image.Image | np.ndarray, size: int, preprocessing: str, where: str = "image"
) -> np.ndarray:
    """Resizes an image in memory, of any size, to uint8[size, size, 3].

    Args:
      image: a PIL image of any mode, or a uint8 array [height, width, 3], or
        [height, width] in grey.
      size: height and width, in pixels.
      preprocessing: one of PREPROCESSING.
      where: names the image in errors.

    Raises:
      DataError: another type, dtype or shape; a damaged file; or see `to_rgb`.
    """
    if isinstance(image, Image.Image):
        with pillow_errors(where):
            image = to_rgb(image, where, drops_alpha(preprocessing))
        return resize_image(image, size, preprocessing)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{where} is a {type(image).__name__}; expected a PIL image or a NumPy array"
        )
    is_grey, is_rgb = image.ndim == 2, image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not image.size or not (is_grey or is_rgb):
        raise DataError(
            f"{where} is {image.dtype}{list(image.shape)}; expected "
            "uint8[height, width, 3]"
        )
    return resize_image(Image.fromarray(image).convert("RGB"), size, preprocessing)


def pads(preprocessing: str) -> bool:
    """Returns whether images are padded to squares before they are resized."""
    return preprocessing.endswith(_PAD)


def drops_alpha(preprocessing: str) -> bool:
    """Returns whether transparent images keep the colours under their alpha."""
    return preprocessing == "bv_bilinear"


def resize_image(image: Image.Image, size: int, preprocessing: str) -> np.ndarray:
    """Resizes an RGB image to uint8[size, size, 3].

    Args:
      image: the image.
      size: height and width, in pixels.
      preprocessing: one of PREPROCESSING:
        `hf_bicubic`, `hf_bilinear`: stretched to the square by PIL's filter, bit for
          bit as transformers' SiglipImageProcessor;
        `hf_bicubic_pad`, `hf_bilinear_pad`: the same, after padding to a square with
          the mean colour (LLaVA's `image_aspect_ratio: pad`, transformers'
          LlavaImageProcessor with `do_pad`);
        `bv_bilinear`: stretched as big_vision's `resize(size)`, which SigLIP's and
          SigLIP 2's own evaluation uses: bit for bit tf.image.resize without
          antialiasing, truncated to integers.
    """
    if preprocessing == "bv_bilinear":
        return _bilinear(image, size)
    if pads(preprocessing):
        image = _pad_to_square(image)
    resample = _FILTERS[preprocessing.removesuffix(_PAD)]
    return np.asarray(image.resize((size, size), resample))


def _pad_to_square(image: Image.Image) -> Image.Image:
    """Centres an image in a square; the larger half of odd padding comes last."""
    if image.width == image.height:
        return image
    # The larger half last, as transformers and LLaVA round down the offset.
    side = max(image.size)
    square = Image.new("RGB", (side, side), _MEAN_COLOUR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _bilinear(image: Image.Image, size: int) -> np.ndarray:
    """Interpolates between the four nearest pixels in float32.

    The order of operations is TensorFlow's: in another, some values would truncate to
    the number below.
    """
    top, bottom, down = _neighbours(image.height, size)
    left, right, across = _neighbours(image.width, size)
    out = np.empty((size, size, 3), np.uint8)
    # In strips, so that there is no second copy of a large image.
    count = min(size, 1 + image.width * image.height // 2**20)
    for strip in np.array_split(np.arange(size), count):
        first, last = int(top[strip[0]]), int(bottom[strip[-1]]) + 1
        pixels = np.asarray(image.crop((0, first, image.width, last)))
        upper, lower = (
            _lerp(
                pixels[rows[strip, None] - first, left],
                pixels[rows[strip, None] - first, right],
                across[:, None],
            )
            for rows in (top, bottom)
        )
        out[strip] = _lerp(upper, lower, down[strip, None, None])
    return out


def _lerp(first: np.ndarray, last: np.ndarray, weight: np.ndarray) -> np.ndarray:
    # Not (1 - weight) * first + weight * last, which rounds otherwise.
    first = first.astype(np.float32)
    return first + (last.astype(np.float32) - first) * weight


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels before and after each output pixel's centre, and the weight of
    the latter.
    """
    # In float32, as TensorFlow: in float64 some centres fall on the other side of a pixel.
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    coordinates = centres * (np.float32(length) / np.float32(size)) - np.float32(0.5)
    floor = np.floor(coordinates)
    before = np.maximum(floor, 0).astype(np.int64)
    after = np.minimum(np.ceil(coordinates), length - 1).astype(np.int64)
    return before, after, coordinates - floor
