"""What an encoder makes of images: kept where they fit, made anew where they do not.

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
from hive_jax.models.norms import layer_norm
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.probing.encoders import Encoder
from hive_jax.training import sharding
from hive_jax.training.objectives import normalize_images

LARGEST = 4 * 2**30  # bytes of features that are kept
_BATCH = 128


class Reader:
    """images uint8[B, size, size, 3] -> features of some depths, float32[M, B, ...].

    Args:
      depths: counted from 1.
      pooled: the mean of the tokens; False for all of them.
      mesh: that rows are split over; None for one device.
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

        def read(params, images):
            out = model.apply({"params": params}, normalize_images(images), depths)
            found = [
                out.tokens if depth == config.depth else layer_norm(feature, *plain)
                for depth, feature in zip(depths, out.features, strict=True)
            ]
            found = jnp.stack(found).astype(jnp.float32)
            return found.mean(axis=2) if pooled else found

        self._read = jax.jit(read)
        everywhere = None if mesh is None else sharding.replicated(mesh)
        self._params = jax.device_put(encoder.params, everywhere)

    def __call__(self, images: np.ndarray) -> jax.Array:
        if self._mesh is None:
            return self._read(self._params, jnp.asarray(images))
        count = sharding.round_up(self._mesh, len(images))
        whole = np.concatenate([images, np.repeat(images[:1], count - len(images), 0)])
        where = sharding.batch_sharding(self._mesh, count)
        found = self._read(self._params, jax.device_put(whole, where))
        return found[:, : len(images)]


class Labelled:
    """Images of a source with the numbers of their classes.

    Args:
      classes: all names there are.
      strict: an image that cannot be read is an error; False counts it and goes on.
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
        """(images uint8[B, ...], classes int32[B], -1 for what is bad) of each array of
        indices; augmented, if there is a seed."""
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


def fits(reader: Reader, count: int) -> bool:
    """Whether the features of so many images are kept."""
    return 4 * count * len(reader.depths) * int(np.prod(reader.shape)) <= LARGEST


def extract(
    reader: Reader, images: Labelled, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32[M, n, ...] and classes int32[n] of all images, in order."""
    chosen = in_parts(len(images))
    found = np.empty((len(reader.depths), len(images), *reader.shape), np.float32)
    classes = np.empty(len(images), np.int32)
    with progress_bar(name, len(images), 0) as bar:
        for rows, (pixels_, numbers) in zip(
            chosen, images.batches(chosen), strict=True
        ):
            found[:, rows] = reader(pixels_)
            classes[rows] = numbers
            bar.update(len(rows))
    return found, classes


def in_parts(count: int) -> list[np.ndarray]:
    """0, ..., count - 1 in order, in parts of at most the size of a batch."""
    return [
        np.arange(start, min(start + _BATCH, count))
        for start in range(0, count, _BATCH)
    ]
