"""Images as squares, as an encoder was trained to see them.

The name of the preprocessing is kept in checkpoints: weights trained under one are off
under another.
"""

import numpy as np
from PIL import Image

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


def resized(image: Image.Image, size: int, preprocessing: str) -> np.ndarray:
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
