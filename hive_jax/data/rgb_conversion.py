"""Conversion of images of any mode to RGB: transparency, palettes, 16 bits."""

import numpy as np
from PIL import Image

from hive_jax.data.invalid import InvalidSample

# An image of 16 bits whose values all fit in 12 is taken for one that was not scaled:
# it would be almost black.
_USED_SHARE = 1 / 16


def to_rgb(
    image: Image.Image, where: str, drop_alpha: bool = False, bits: int = 8
) -> Image.Image:
    """Converts a Pillow image to RGB.

    Transparent images are composited on white, as transformers does since 5.22
    (`image_transforms.convert_to_rgb`). Of 16 bits the upper 8 are kept, as
    tf.io.decode_image does; transformers has Pillow clip grey ones at 255.

    Args:
      image: of any mode.
      where: names the image in errors.
      drop_alpha: use the colours under transparent pixels, as tf.io.decode_image of
        three channels does, and so big_vision.
      bits: of a colour in the file, 8 or 16. Pillow tells it of grey images alone.

    Raises:
      InvalidSample: Pillow cannot convert it, the range of its values is not known, or
        only the lower 12 of 16 bits are used.
    """
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_of_8_bits(image, where)
    elif bits == 16:
        _require_used(brightest(image), 256, where)
    try:
        if has_alpha(image):
            # Palettes too: Pillow warns where they become RGB at once.
            image = image.convert("RGBA")
            if not drop_alpha:
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError:
        raise _unknown_mode(image, where) from None


def has_alpha(image: Image.Image) -> bool:
    """Returns whether a Pillow image has an alpha channel or a transparent colour."""
    return "A" in image.getbands() or image.info.get("transparency") is not None


def is_transparent(image: Image.Image) -> bool:
    """Returns whether a loaded Pillow image has pixels that are not opaque."""
    if not has_alpha(image):
        return False
    if image.mode.startswith("I"):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def brightest(image: Image.Image) -> int:
    """Returns the largest value of all colours, of 255; of 65,535 in modes I."""
    bands = image.getextrema()
    bands = bands if isinstance(bands[0], tuple) else (bands,)
    names = image.getbands()
    return int(max(high for name, (_, high) in zip(names, bands) if name != "A"))


def _grey_of_8_bits(image: Image.Image, where: str) -> Image.Image:
    """Returns the upper 8 bits of 16, with alpha where a value is transparent."""
    # PNG is of 16 bits at most; Pillow before 11 has its grey images in 32.
    if not image.mode.startswith("I;16") and image.format != "PNG":
        raise _unknown_mode(image, where)
    values, transparent = np.asarray(image), image.info.get("transparency")
    _require_used(int(values.max()), 65536, where)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if transparent is not None:
        opaque = np.where(values == transparent, 0, 255)
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return grey


def _require_used(highest: int, total: int, where: str) -> None:
    if 0 < highest < total * _USED_SHARE:
        raise InvalidSample(
            "unscaled 16 bits",
            where,
            "has 16 bits a value, but uses 12 or fewer, and would be almost black: "
            "multiply its values by 16 (of 12 bits), or save it in 8 bits",
        )


def _unknown_mode(image: Image.Image, where: str) -> InvalidSample:
    return InvalidSample(
        "pixel format",
        where,
        f"has pixels of Pillow's mode {image.mode}; expected 8 or 16 bits a colour: "
        "save it as RGB",
    )
