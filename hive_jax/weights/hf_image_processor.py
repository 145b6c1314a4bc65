"""preprocessor_config.json of Hugging Face folders, for each preprocessing."""

# Values of preprocessor_config.json for each preprocessing that transformers has;
# "resample" is PIL's: 2 is bilinear, 3 is bicubic.
_PAD = {
    "image_processor_type": "LlavaImageProcessor",
    "do_pad": True,
    "do_center_crop": False,
}
PROCESSORS = {
    "hf_bicubic": {"resample": 3},
    "hf_bilinear": {"resample": 2},
    "hf_bicubic_pad": {"resample": 3, **_PAD},
    "hf_bilinear_pad": {"resample": 2, **_PAD},
}
# The most similar to one that it lacks: its own filters all antialias.
_NEAREST = {"bv_bilinear": "hf_bilinear"}


def nearest_preprocessing(preprocessing: str) -> str:
    """Returns the preprocessing itself, or the most similar that transformers has."""
    return _NEAREST.get(preprocessing, preprocessing)


def image_processor(image_size: int, preprocessing: str, processor: str = "") -> dict:
    """Returns the content of preprocessor_config.json.

    Args:
      image_size: side of the images in pixels.
      preprocessing: a key of PROCESSORS.
      processor: class of the processor for images and text, if there is one.
    """
    return {
        "image_processor_type": "SiglipImageProcessor",
        **({"processor_class": processor} if processor else {}),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],  # pixels in [-1, 1]
        "image_std": [0.5, 0.5, 0.5],
        **PROCESSORS[preprocessing],
    }
