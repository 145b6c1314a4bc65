"""Image files that exported image processors are compared on, and their pixels."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import ExifTags, Image

from hive_jax.data.tabletop.dataset import Tabletop
from hive_jax.data.transforms import decode, prepare_image, resize_image
from hive_jax.export.known_deviation import KnownDeviation

_FILE, _OUTPUT = "image_file", "image processor"


def image_files(size: int) -> dict[str, np.ndarray]:
    """Returns the entries image_file... of `Component.example_inputs`.

    A built-in scene as an RGB file, and in the kinds that readers treat differently.

    Args:
      size: of the encoder's images, in pixels. The files are larger.

    Returns:
      "image_file", and "image_file, KIND" of each kind: the bytes of a file, uint8[N].
    """
    scene = Image.fromarray(Tabletop("test", image_size=max(8, 3 * size // 2))[0].image)
    transparent = scene.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(scene.size))
    grey, palette = scene.convert("L"), scene.quantize(16)
    wide = scene.crop((0, 0, scene.width, 1 + scene.height // 2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    corner = palette.getpixel((0, 0))
    files = {
        "": _encoded(scene, "PNG"),
        ", 16-bit": _encoded(Image.fromarray(np.asarray(grey) * np.uint16(257)), "PNG"),
        ", grey": _encoded(grey, "PNG"),
        ", palette": _encoded(palette, "PNG", transparency=corner),
        ", rotated": _encoded(wide, "JPEG", quality=95, exif=exif),
        ", transparent": _encoded(transparent, "PNG"),
    }
    return {_FILE + kind: file for kind, file in files.items()}


def expected_pixels(
    inputs: Mapping[str, np.ndarray], size: int, preprocessing: str
) -> dict[str, np.ndarray]:
    """Prepares the image files as training does.

    Args:
      inputs: with the entries of `image_files`; others are ignored.
      size: of the encoder's images, in pixels.
      preprocessing: one of PREPROCESSING.

    Returns:
      "image processor", and "image processor, KIND" of each kind, float32[1, 3, size,
      size] in [-1, 1].
    """
    return {
        name.replace(_FILE, _OUTPUT): normalize(
            decode(file.tobytes(), size, preprocessing, name)[None]
        )
        for name, file in inputs.items()
        if name.startswith(_FILE)
    }


def known_deviations(
    inputs: Mapping[str, np.ndarray], size: int, preprocessing: str
) -> dict[str, KnownDeviation]:
    """Returns what transformers makes of images that it treats otherwise, by output.

    Args:
      inputs: with the entries of `image_files`.
      size: of the encoder's images, in pixels.
      preprocessing: one of PREPROCESSING, not big_vision's.
    """
    deviations = {}
    for kind in ("palette", "transparent"):
        image = _opened(inputs[f"{_FILE}, {kind}"]).convert("RGBA").convert("RGB")
        deviations[f"{_OUTPUT}, {kind}"] = KnownDeviation(
            normalize(resize_image(image, size, preprocessing)[None]),
            "transformers before 5.22 drops alpha: composite the image on white before",
        )
    values = np.asarray(_opened(inputs[f"{_FILE}, 16-bit"]))
    clipped = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    deviations[f"{_OUTPUT}, 16-bit"] = KnownDeviation(
        normalize(prepare_image(clipped, size, preprocessing)[None]),
        "transformers has Pillow clip 16 bits of grey at 255, white: save it in 8 bits",
    )
    return deviations


def normalize(images: np.ndarray) -> np.ndarray:
    """Maps uint8[B, H, W, 3] to float32[B, 3, H, W] in [-1, 1]."""
    return (images.astype(np.float32) / 127.5 - 1.0).transpose(0, 3, 1, 2)


def _encoded(image: Image.Image, kind: str, **options) -> np.ndarray:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return np.frombuffer(out.getvalue(), np.uint8)


def _opened(file: np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(file.tobytes()))
