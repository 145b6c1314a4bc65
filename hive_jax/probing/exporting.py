"""A linear probe and its encoder as transformers' SiglipForImageClassification."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.errors import ConfigError
from hive_jax.inference.model import Encoder
from hive_jax.weights import huggingface, writing


def export_classifier(
    out: str,
    encoder: Encoder,
    depth: int,
    probe: Mapping,
    classes: Sequence[str],
    preprocessing: str,
) -> None:
    """Writes a folder: the blocks up to `depth`, and the classifier on the mean of their
    normalised tokens.

    Args:
      probe: parameters of a LinearProbe.

    Raises:
      ConfigError: transformers has no such preprocessing.
      OutputError: there is something at `out`, or it cannot be written.
    """
    if preprocessing not in huggingface.PROCESSORS:
        raise ConfigError(
            f"preprocessing is {preprocessing!r}; transformers has "
            f"{', '.join(huggingface.PROCESSORS)} alone"
        )
    config = dataclasses.replace(encoder.config, depth=depth, map_head=False)
    layout = huggingface.encoder(config)
    arrays = _up_to(encoder, depth)
    classifier = probe["classifier"]
    make, shapes = huggingface.tensors(layout, arrays, np.dtype(np.float32))
    kernel, bias = np.asarray(classifier["kernel"]), np.asarray(classifier["bias"])
    make |= {
        "classifier.weight": lambda: np.ascontiguousarray(kernel.T),
        "classifier.bias": lambda: bias,
    }
    shapes |= {"classifier.weight": kernel.T.shape, "classifier.bias": bias.shape}
    names = dict(enumerate(classes))
    vision = {k: v for k, v in layout.config.items() if k != "architectures"}
    about = {
        "architectures": ["SiglipForImageClassification"],
        "model_type": "siglip",
        "vision_config": vision,
        "id2label": {str(number): name for number, name in names.items()},
        "label2id": {name: number for number, name in names.items()},
        "problem_type": "single_label_classification",
        "torch_dtype": "float32",
    }
    with writing.new_folder(out) as folder:
        writing.write_json(folder / "config.json", about)
        writing.write_tensors(folder, make, shapes, np.dtype(np.float32))
        processor = huggingface.image_processor(config.image_size, preprocessing)
        writing.write_json(folder / "preprocessor_config.json", processor)


def _up_to(encoder: Encoder, depth: int) -> dict[str, np.ndarray]:
    """Parameters of the blocks up to `depth`, and of the norm that features.py has."""
    arrays, blocks = {}, "Transformer/encoderblock/"
    for name, leaf in flatten_dict(encoder.params, sep="/").items():
        if name.startswith("MAPHead_0/"):
            continue
        array = np.asarray(leaf)
        if name.startswith(blocks):
            array = array[:depth]
        elif name.startswith("Transformer/encoder_norm/") and (
            depth < encoder.config.depth
        ):
            array = np.full_like(array, name.endswith("scale"))
        arrays[name] = array
    return arrays
