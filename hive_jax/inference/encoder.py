"""A vision encoder with the image preprocessing of its training."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from hive_jax.data.transforms import prepare_image
from hive_jax.errors import DataError
from hive_jax.models.config import SiglipConfig
from hive_jax.models.siglip import EncoderOutput, SiglipEncoder
from hive_jax.training.objectives import compute_dtype, normalize_images
from hive_jax.training.resolve import open_weights
from hive_jax.weights import save_encoder
from hive_jax.weights.hf_folder import assume_preprocessing

Images = np.ndarray | Sequence[Image.Image | np.ndarray]
# Images or texts per compiled call, which bounds the memory; longer inputs take several
# calls.
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A vision encoder with the image preprocessing of its training.

    Attributes:
      config: architecture.
      params: nested dict of float32 arrays, as `SiglipEncoder.apply` takes them.
      preprocessing: name of the image preprocessing; see hive_jax/data/transforms.py.
      name: name in messages and tables; by default the path it was loaded from.
      dtype: dtype of the computation: "float32", "bfloat16" or "auto".
    """

    config: SiglipConfig
    params: dict
    preprocessing: str = "hf_bicubic"
    name: str = ""
    dtype: str = "auto"

    def __call__(self, images: Images, depths: Sequence[int] = ()) -> EncoderOutput:
        """Encodes images.

        Args:
          images: as for `preprocess`.
          depths: blocks, counted from 1, whose outputs are returned as `features`.

        Returns:
          tokens [B, P, D] after the final norm, pooled [B, D], and features
          [M, B, P, D] of the M requested depths (None without any).

        Raises:
          DataError: an image of another type, dtype or shape.
          ValueError: a depth that the encoder does not have.
        """
        depths = tuple(depths)
        if not all(1 <= depth <= self.config.depth for depth in depths):
            raise ValueError(
                f"depths are {depths}; expected numbers from 1 to {self.config.depth}"
            )
        # uint8 until it is on the device, where `normalize_images` scales it.
        pixels = self.preprocess(images)
        outputs = [
            self._compiled(self._device_params, batch, depths)
            for batch in split_batches(pixels)
        ]
        tokens, pooled, features = zip(
            *((o.tokens, o.pooled, o.features) for o in outputs), strict=True
        )
        # Without the padding rows of the last batch.
        count = len(pixels)
        return EncoderOutput(
            jnp.concatenate(tokens)[:count],
            jnp.concatenate(pooled)[:count],
            jnp.concatenate(features, axis=1)[:, :count] if depths else None,
        )

    def preprocess(self, images: Images) -> np.ndarray:
        """Resizes images as in training: uint8[B, image_size, image_size, 3].

        Args:
          images: PIL images or uint8 arrays [height, width, 3], each of any size; or
            one array uint8[B, height, width, 3].

        Raises:
          DataError: no image, or an image of another type, dtype or shape.
        """
        # A single image has three dimensions; as a sequence it would be rows of pixels.
        one = isinstance(images, Image.Image) or getattr(images, "ndim", 4) == 3
        if one or not len(images):
            raise DataError(
                f"images is {'one image' if one else 'empty'}; expected a sequence of "
                "images, such as [image]"
            )
        size = self.config.image_size
        return np.stack(
            [
                prepare_image(image, size, self.preprocessing, f"image {number}")
                for number, image in enumerate(images)
            ]
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all parameters, 16 hexadecimal digits."""
        return fingerprint(flatten_dict(self.params, sep="/"))

    def save(self, path: str | os.PathLike, format: str = "huggingface") -> None:
        """Writes the encoder for other libraries; see `hive_jax.save_encoder`.

        Args:
          path: folder ("huggingface") or .npz file ("big_vision") that does not exist.
          format: "huggingface" or "big_vision".

        Raises:
          OutputError: `path` exists or cannot be written.
        """
        save_encoder(
            path, self.config, self.params, format, preprocessing=self.preprocessing
        )

    @functools.cached_property
    def _device_params(self) -> dict:
        # Once, and not at every call: weights read from files are NumPy arrays.
        return jax.tree.map(jnp.asarray, self.params)

    @functools.cached_property
    def _compiled(self) -> Callable:
        model = SiglipEncoder(self.config, compute_dtype(self.dtype))

        def apply(params, images, depths):
            return model.apply({"params": params}, normalize_images(images), depths)

        # Depths are static: they decide which blocks run, and the shape of the result.
        return jax.jit(apply, static_argnums=2)


def load_encoder(
    path: str | os.PathLike, name: str = "", preprocessing: str = ""
) -> Encoder:
    """Loads a vision encoder.

    Args:
      path: as for `load`.
      name: name in messages and tables; by default the path.
      preprocessing: name of the image preprocessing; by default that of the weights.

    Raises:
      MissingInputError: `path` does not exist, or a file in it is missing.
      CheckpointError: the weights are damaged, or have no image tower of a known family.
    """
    path = os.fspath(path)
    source = open_weights(path, "encoder")
    preprocessing = preprocessing or source.preprocessing or assume_preprocessing(path)
    params = unflatten_dict(dict(source.leaves()), sep="/")
    return Encoder(source.config, params, preprocessing, name or path)


def fingerprint(leaves: Mapping[str, np.ndarray]) -> str:
    """Returns a hash of names, shapes, dtypes and bits of arrays, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    # Sorted, because the order of a dict is not part of the model.
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def split_batches(array: np.ndarray) -> list[np.ndarray]:
    """Splits axis 0 into batches of one shape; the last one is padded by the first row.

    Equal shapes avoid compiling a second program. Callers drop the surplus rows.
    """
    # A short input is one batch of its own size, without padding.
    size = min(len(array), BATCH_SIZE)
    padding = -len(array) % size
    array = np.concatenate([array, np.repeat(array[:1], padding, axis=0)])
    return np.split(array, len(array) // size)
