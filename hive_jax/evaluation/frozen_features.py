"""Features of a frozen encoder, and their extraction for whole datasets.

    linear      the mean of the tokens, [n, D]
    attentive   all tokens, [n, P, D]

At the last depth, features are taken after the final norm. At other depths they are
layer-normalised without scale and bias, since the learnt ones fit the last depth only; so
they are at all depths for a probe that learns a norm of its own.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hive_jax.console import progress_bar
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.parallel import ordered_map
from hive_jax.data.transforms import load_pixels
from hive_jax.errors import DataError
from hive_jax.inference.encoder import Encoder
from hive_jax.models.norms import layer_norm
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.training import sharding
from hive_jax.training.objectives import normalize_images

# Of host memory, next to the decoded images and the classifiers.
MAX_CACHED_BYTES = 4 * 2**30
_BATCH = 128


class FeatureExtractor:
    """Maps images uint8[B, size, size, 3] to features of M depths, float32[M, B, ...].

    Args:
      encoder: encoder with frozen weights.
      depths: encoder blocks to take features from, counted from 1.
      pooled: average over tokens, [M, B, D]; False for all tokens, [M, B, P, D].
      dtype: of the computation.
      mesh: devices to split batches over; None for one device.
      fresh_norm: do without the encoder's final norm.
    """

    def __init__(
        self,
        encoder: Encoder,
        depths: tuple[int, ...],
        pooled: bool,
        dtype: jnp.dtype,
        mesh: Mesh | None = None,
        fresh_norm: bool = False,
    ):
        config = encoder.config
        self.image_size, self.depths, self._mesh = config.image_size, depths, mesh
        tokens = () if pooled else (config.num_patches,)
        self.shape = (*tokens, config.width)
        model = SiglipEncoder(config, dtype)
        # Scale and bias of a norm without learnt ones.
        plain = jnp.ones(config.width), jnp.zeros(config.width)
        own_norm = None if fresh_norm else config.depth

        def apply(params, images):
            out = model.apply({"params": params}, normalize_images(images), depths)
            features = [
                # `tokens` is the last depth after the encoder's own norm.
                out.tokens if depth == own_norm else layer_norm(feature, *plain)
                for depth, feature in zip(depths, out.features, strict=True)
            ]
            # float32, in which classifiers train; the mean over tokens [M, B, P, D] as
            # well.
            features = jnp.stack(features).astype(jnp.float32)
            return features.mean(axis=2) if pooled else features

        self._apply = jax.jit(apply)
        # Each device has the encoder and its rows of a batch.
        everywhere = None if mesh is None else sharding.replicated(mesh)
        self._params = jax.device_put(encoder.params, everywhere)

    def __call__(self, images: np.ndarray) -> jax.Array:
        if self._mesh is None:
            return self._apply(self._params, jnp.asarray(images))
        count = sharding.round_up(self._mesh, len(images))
        # Copies of the first image fill the devices; their features are dropped.
        padded = np.concatenate([images, np.repeat(images[:1], count - len(images), 0)])
        batch_sharding = sharding.batch_sharding(self._mesh, count)
        features = self._apply(self._params, jax.device_put(padded, batch_sharding))
        return features[:, : len(images)]


class LabelledImages:
    """Preprocessed images of a dataset with their class indices.

    Attributes:
      bad: index -> error message of each unreadable image so far.

    Args:
      source: dataset with labels.
      classes: names of all classes; their order defines the class indices.
      preprocessing: name of the image preprocessing.
      image_size: side length in pixels.
      threads: number of image decoding threads.
      strict: raise DataError on an unreadable image; False records it in `bad` and
        yields class -1.
    """

    def __init__(
        self,
        source,
        classes: tuple[str, ...],
        preprocessing: str,
        image_size: int,
        threads: int,
        strict: bool,
    ):
        self.source, self._threads, self._strict = source, threads, strict
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._preprocessing, self._size = preprocessing, image_size
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, index_batches: Iterable[np.ndarray], seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (images uint8[B, ...], classes int32[B]) for each array of indices.

        Args:
          index_batches: arrays of indices.
          seed: random seed of the augmentation; None for no augmentation.

        An unreadable image is black and has the class -1.

        Raises:
          DataError: an image is unreadable or of an unknown class, and `strict` is set.
        """
        index_batches = [*index_batches]
        # Position of each batch's first image: the augmentation depends on the
        # position, and not on the thread that decodes.
        starts = np.cumsum([0, *map(len, index_batches)]).tolist()

        def load(number: int):
            rows = enumerate(index_batches[number], starts[number])
            return [self._row(int(index), position, seed) for position, index in rows]

        # Decoded in parallel, yielded in order.
        for rows in ordered_map(load, range(len(index_batches)), self._threads):
            images, classes = zip(*rows, strict=True)
            yield np.stack(images), np.array(classes, np.int32)

    def _row(self, index: int, position: int, seed: int | None):
        where = self.source.describe(index)
        augment = None if seed is None else (seed, position)
        try:
            sample = self.source[index]
            if sample.label not in self._numbers:
                detail = (
                    f"has the class {sample.label!r}, which the training data lacks"
                )
                raise InvalidSample("class", where, detail)
            image = load_pixels(
                sample.image, self._size, self._preprocessing, where, augment
            )
            return image, self._numbers[sample.label]
        except InvalidSample as bad:
            if self._strict:
                raise DataError(
                    f"{bad}. Repair the test image: accuracy over a subset is not "
                    "comparable"
                ) from None
            self.bad[index] = str(bad)
            return np.zeros((self._size, self._size, 3), np.uint8), -1

    def require(self, max_bad_fraction: float) -> None:
        """Raises DataError if more than this fraction of all images is unreadable."""
        if len(self.bad) > max_bad_fraction * len(self):
            raise DataError(
                f"{len(self.bad)} of {len(self)} training images cannot be read, more "
                f"than config.max_bad_fraction = {max_bad_fraction}; the first: "
                f"{next(iter(self.bad.values()))}"
            )


def fits_in_memory(extractor: FeatureExtractor, count: int) -> bool:
    """Returns whether the float32 features of all images fit in MAX_CACHED_BYTES.

    Args:
      extractor: extractor, which defines the shape of the features.
      count: number of images.
    """
    return (
        # 4 bytes a float32.
        4 * count * len(extractor.depths) * int(np.prod(extractor.shape))
        <= MAX_CACHED_BYTES
    )


def extract(
    extractor: FeatureExtractor, images: LabelledImages, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Extracts features float32[M, n, ...] and classes int32[n] of all images, in order.

    Args:
      extractor: extractor of the encoder.
      images: dataset of n images.
      name: label of the progress bar.

    Raises:
      DataError: an image is unreadable, and `images` is strict.
    """
    index_batches = split_batches(len(images))
    # Allocated once: concatenating batches would need twice the memory.
    features = np.empty(
        (len(extractor.depths), len(images), *extractor.shape), np.float32
    )
    classes = np.empty(len(images), np.int32)
    with progress_bar(name, len(images), 0) as bar:
        for rows, (pixels, numbers) in zip(
            index_batches, images.batches(index_batches), strict=True
        ):
            features[:, rows] = extractor(pixels)
            classes[rows] = numbers
            bar.update(len(rows))
    return features, classes


def split_batches(count: int) -> list[np.ndarray]:
    """Splits the indices 0, ..., count - 1, in order, into batches of at most 128."""
    return [
        np.arange(start, min(start + _BATCH, count))
        for start in range(0, count, _BATCH)
    ]
