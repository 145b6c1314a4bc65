"""A linear probe and its encoder as transformers' SiglipForImageClassification."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.errors import ConfigError
from hive_jax.io import atomic_dir, write_json
from hive_jax.models.config import SiglipConfig
from hive_jax.weights import hf_image_processor, hf_models, safetensors


def export_classifier(
    out: str,
    config: SiglipConfig,
    params: Mapping,
    depth: int,
    probe: Mapping,
    classes: Sequence[str],
    preprocessing: str,
) -> None:
    """Writes a folder: the encoder up to a depth, and a classifier on its mean token.

    Args:
      out: folder to write.
      config: of the encoder.
      params: its parameters.
      depth: number of its blocks that the classifier was trained on.
      probe: parameters of a LinearProbe; its norm, if it has one, takes the place of the
        encoder's final one.
      classes: name of each class.
      preprocessing: of the images, one that transformers has.

    Raises:
      ConfigError: transformers has no such preprocessing.
      OutputError: `out` exists, or cannot be written.
    """
    if preprocessing not in hf_image_processor.PROCESSORS:
        raise ConfigError(
            f"preprocessing is {preprocessing!r}; expected one that transformers has: "
            f"{', '.join(hf_image_processor.PROCESSORS)}"
        )
    arrays = _truncated(params, depth, config.depth)
    for name, leaf in probe.get("norm", {}).items():
        arrays[f"Transformer/encoder_norm/{name}"] = np.asarray(leaf)
    # SiglipForImageClassification classifies the mean token, without a pooling head.
    config = dataclasses.replace(config, depth=depth, map_head=False)
    layout = hf_models.encoder(config)
    make, shapes = hf_models.tensors(layout, arrays, np.dtype(np.float32))
    classifier = probe["classifier"]
    kernel, bias = np.asarray(classifier["kernel"]), np.asarray(classifier["bias"])
    # torch's Linear stores [outputs, inputs], which is the transposed kernel.
    make |= {
        "classifier.weight": lambda: np.ascontiguousarray(kernel.T),
        "classifier.bias": lambda: bias,
    }
    shapes |= {"classifier.weight": kernel.T.shape, "classifier.bias": bias.shape}
    # Nested, it is a sub-configuration of the classifier's.
    vision = {k: v for k, v in layout.config.items() if k != "architectures"}
    hf_config = {
        "architectures": ["SiglipForImageClassification"],
        "model_type": "siglip",
        "vision_config": vision,
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "problem_type": "single_label_classification",
        "torch_dtype": "float32",
    }
    with atomic_dir(out) as folder:
        write_json(folder / "config.json", hf_config)
        safetensors.write_tensors(folder, make, shapes, np.dtype(np.float32))
        processor = hf_image_processor.image_processor(config.image_size, preprocessing)
        write_json(folder / "preprocessor_config.json", processor)


def _truncated(params: Mapping, depth: int, full_depth: int) -> dict[str, np.ndarray]:
    """Returns parameters by name of the blocks up to `depth`, without the pooling head.

    Below the full depth, features are normalised without learned scale and bias, so
    the final norm becomes the identity.
    """
    arrays = {}
    for name, leaf in flatten_dict(params, sep="/").items():
        if name.startswith("MAPHead_0/"):
            continue
        array = np.asarray(leaf)
        if name.startswith("Transformer/encoderblock/"):
            # Layers are stacked on axis 0.
            array = array[:depth]
        elif name.startswith("Transformer/encoder_norm/") and depth < full_depth:
            # Scale 1 and bias 0.
            array = np.full_like(array, name.endswith("scale"))
        arrays[name] = array
    return arrays
