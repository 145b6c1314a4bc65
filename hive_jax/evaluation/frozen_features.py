"""Features of a frozen encoder, cached in memory where they fit.

    linear      the mean of the tokens, [n, D]
    attentive   all tokens, [n, P, D]

The features of the last depth are those after the final norm. Those of the others are
normalised in the same way, without its learnt scale and bias.
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

MAX_CACHED_BYTES = 4 * 2**30
_BATCH = 128


class FeatureExtractor:
    """images uint8[B, size, size, 3] -> features of some depths, float32[M, B, ...].

    Args:
      encoder: frozen weights.
      depths: counted from 1.
      pooled: mean over tokens; False for all tokens.
      dtype: of the computation.
      mesh: devices to split batches over; None for one device.
    """

    def __init__(
        self,
        encoder: Encoder,
        depths: tuple[int, ...],
        pooled: bool,
        dtype: jnp.dtype,
        mesh: Mesh | None = None,
    ):
        config = encoder.config
        self.image_size, self.depths, self._mesh = config.image_size, depths, mesh
        tokens = () if pooled else (config.num_patches,)
        self.shape = (*tokens, config.width)
        model = SiglipEncoder(config, dtype)
        plain = jnp.ones(config.width), jnp.zeros(config.width)

        def apply(params, images):
            out = model.apply({"params": params}, normalize_images(images), depths)
            features = [
                out.tokens if depth == config.depth else layer_norm(feature, *plain)
                for depth, feature in zip(depths, out.features, strict=True)
            ]
            features = jnp.stack(features).astype(jnp.float32)
            return features.mean(axis=2) if pooled else features

        self._apply = jax.jit(apply)
        everywhere = None if mesh is None else sharding.replicated(mesh)
        self._params = jax.device_put(encoder.params, everywhere)

    def __call__(self, images: np.ndarray) -> jax.Array:
        if self._mesh is None:
            return self._apply(self._params, jnp.asarray(images))
        count = sharding.round_up(self._mesh, len(images))
        whole = np.concatenate([images, np.repeat(images[:1], count - len(images), 0)])
        where = sharding.batch_sharding(self._mesh, count)
        features = self._apply(self._params, jax.device_put(whole, where))
        return features[:, : len(images)]


class LabelledImages:
    """Images of a source with class indices.

    Args:
      source: dataset with labels.
      classes: names of all classes.
      preprocessing: of the images.
      image_size: side in pixels.
      threads: that decode images.
      strict: raise on an unreadable image; False counts and skips it.
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
        self, chosen: Iterable[np.ndarray], seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (images uint8[B, ...], classes int32[B]) for each array of indices.

        Args:
          chosen: arrays of indices.
          seed: of augmentation; None for none.

        The class of an unreadable image is -1.
        """
        chosen = [*chosen]
        starts = np.cumsum([0, *map(len, chosen)]).tolist()

        def load(number: int):
            rows = enumerate(chosen[number], starts[number])
            return [self._row(int(index), position, seed) for position, index in rows]

        for rows in ordered_map(load, range(len(chosen)), self._threads):
            images, classes = zip(*rows, strict=True)
            yield np.stack(images), np.array(classes, np.int32)

    def _row(self, index: int, position: int, seed: int | None):
        where = self.source.describe(index)
        augment = None if seed is None else (seed, position)
        try:
            sample = self.source[index]
            if sample.label not in self._numbers:
                detail = f"is of the class {sample.label!r}, none of those to train on"
                raise InvalidSample("class", where, detail)
            image = load_pixels(
                sample.image, self._size, self._preprocessing, where, augment
            )
            return image, self._numbers[sample.label]
        except InvalidSample as bad:
            if self._strict:
                raise DataError(
                    f"{bad}. Accuracy over a part compares with nothing"
                ) from None
            self.bad[index] = str(bad)
            return np.zeros((self._size, self._size, 3), np.uint8), -1

    def require(self, max_bad_fraction: float) -> None:
        """Raises DataError if too many of those read so far are bad."""
        if len(self.bad) > max_bad_fraction * len(self):
            raise DataError(
                f"{len(self.bad)} of {len(self)} images to train on cannot be read, more "
                f"than config.max_bad_fraction = {max_bad_fraction} of them; one is "
                f"{next(iter(self.bad.values()))}"
            )


def fits_in_memory(extractor: FeatureExtractor, count: int) -> bool:
    """Whether the features of `count` images fit in MAX_CACHED_BYTES."""
    return (
        4 * count * len(extractor.depths) * int(np.prod(extractor.shape))
        <= MAX_CACHED_BYTES
    )


def extract(
    extractor: FeatureExtractor, images: LabelledImages, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Extracts features float32[M, n, ...] and classes int32[n] of all images, in order.

    Args:
      extractor: of the encoder.
      images: n images.
      name: for the progress bar.
    """
    chosen = split_batches(len(images))
    features = np.empty(
        (len(extractor.depths), len(images), *extractor.shape), np.float32
    )
    classes = np.empty(len(images), np.int32)
    with progress_bar(name, len(images), 0) as bar:
        for rows, (pixels_, numbers) in zip(
            chosen, images.batches(chosen), strict=True
        ):
            features[:, rows] = extractor(pixels_)
            classes[rows] = numbers
            bar.update(len(rows))
    return features, classes


def split_batches(count: int) -> list[np.ndarray]:
    """Indices 0, ..., count - 1 in order, split into batches."""
    return [
        np.arange(start, min(start + _BATCH, count))
        for start in range(0, count, _BATCH)
    ]
