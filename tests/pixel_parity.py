"""Compares odd images with transformers' processors and with TensorFlow's decoders.

    python tests/pixel_parity.py --count 300

Prints the largest and the mean difference of each kind, of 255; for hf_* of the resized
images, for bv_bilinear of the decoded ones, and only where TensorFlow is installed.
"""

import argparse
import collections
import importlib.util
import io
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from helpers.odd_images import odd_images

from hive_jax.data.image_io import image_format, open_image
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.transforms import decode, prepare_image

SIZE = 96
PROCESSORS = {
    "hf_bicubic": ("SiglipImageProcessorPil", 3),
    "hf_bilinear": ("SiglipImageProcessorPil", 2),
    "hf_bicubic_pad": ("LlavaImageProcessorPil", 3),
}


def processor(preprocessing: str):
    """transformers' processor with the pixels of a preprocessing, 0 to 255."""
    import transformers

    name, resample = PROCESSORS[preprocessing]
    return getattr(transformers, name)(
        size={"height": SIZE, "width": SIZE},
        resample=resample,
        image_mean=[0.5, 0.5, 0.5],
        do_pad=preprocessing.endswith("_pad"),
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
    )


def difference(content: bytes, preprocessing: str, reference) -> np.ndarray:
    """Ours less theirs, of an image in memory; equal to that of the file, if read."""
    with Image.open(io.BytesIO(content)) as image:
        theirs = reference(image, return_tensors="np")["pixel_values"][0]
    with Image.open(io.BytesIO(content)) as image:
        ours = prepare_image(image, SIZE, preprocessing)
    if image_format(content):
        np.testing.assert_array_equal(ours, decode(content, SIZE, preprocessing, ""))
    return abs(ours.transpose(2, 0, 1).astype(int) - theirs.astype(int))


def decoding_difference(content: bytes) -> np.ndarray:
    """Of the decoded image, from big_vision's `decode(precise)`, or `decode` of BMP."""
    import tensorflow as tf

    if image_format(content) in ("BMP", "WEBP"):
        theirs = tf.io.decode_image(content, channels=3, expand_animations=False)
    else:
        theirs = tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE")
    with open_image(content, "", drop_alpha=True) as image:
        return abs(np.asarray(image).astype(int) - theirs.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    count = parser.parse_args().count
    warnings.simplefilter("ignore")  # of Pillow, in transformers
    checks = {}
    if importlib.util.find_spec("transformers"):
        for name in PROCESSORS:
            reference = processor(name)
            checks[name] = lambda content, name=name, reference=reference: difference(
                content, name, reference
            )
    if importlib.util.find_spec("tensorflow"):
        checks["bv_bilinear"] = decoding_difference
    results = collections.defaultdict(list)
    for kind, content in odd_images(count):
        for name, check in checks.items():
            try:
                results[kind, name].append(check(content))
            except InvalidSample as error:
                results[kind, name].append(error.reason)
            except AssertionError:  # of this project's two ways to read an image
                raise
            # Whatever the reference raises for what it does not read.
            except Exception as error:  # noqa: BLE001
                results[kind, name].append(type(error).__name__)
    for (kind, name), found in results.items():
        arrays = [one for one in found if not isinstance(one, str)]
        text = ", ".join(sorted({one for one in found if isinstance(one, str)}))
        if arrays:
            mean = np.mean([array.mean() for array in arrays])
            largest = max(array.max() for array in arrays)
            text += f" largest {largest}, mean {mean:.2f}"
        print(f"{kind:28} {name:16} {len(found):3} {text}")


if __name__ == "__main__":
    main()
