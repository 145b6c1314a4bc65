"""Batches as a function of (seed, step) alone.

Step s reads positions s * batch_size and on of the sampler, whatever the number of hosts
or threads, so the step number is the whole state of the loader. An invalid sample keeps
its position: its row is padding, and no part of the loss is taken on it.
"""

import contextlib
import itertools
from collections.abc import Iterator

import jax
import numpy as np

from hive_jax.data.batch import Batch
from hive_jax.data.chat_template import ChatTemplateError
from hive_jax.data.invalid import InvalidSample, InvalidSampleLog
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sample_encoding import encode_sample
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.data.sources.base import DataSource
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.transforms import load_pixels
from hive_jax.data.types import Sample
from hive_jax.errors import DataError

# Batches read ahead of the training step: one to use, one to absorb slow files.
_PREFETCH = 2
# Smaller batches may lack a supervised token by chance; at this size the template or
# num_tokens is wrong.
_MIN_UNSUPERVISED_ROWS = 8


def read_row(
    source: DataSource,
    index: int,
    tokenizer: Tokenizer,
    num_tokens: int,
    *,
    image_size: int,
    preprocessing: str,
    tag_names: tuple[str, ...] = (),
    augment: tuple[int, int] | None = None,
) -> tuple[Sample, dict[str, np.ndarray]]:
    """Reads a sample and makes its row of a batch.

    Args:
      source: the dataset.
      index: of the sample.
      tokenizer: for its text.
      num_tokens: longer text is cut, shorter padded to it.
      image_size: side of the image, in pixels.
      preprocessing: of image files, one of transforms.PREPROCESSING.
      tag_names: of the tags that the row carries; empty for none.
      augment: (seed, position in the run) of random changes of the image; None for none.

    Returns:
      The sample, and its arrays; see Batch.

    Raises:
      InvalidSample: it cannot be used, or has nothing to learn within `num_tokens`.
    """
    sample, where = source[index], source.describe(index)
    try:
        row = encode_sample(sample, tokenizer, num_tokens, tag_names)
    except ChatTemplateError as error:
        raise InvalidSample("chat template", where, str(error)) from None
    if not row["target"].any():
        detail = f"has no supervised token within num_tokens = {num_tokens}"
        raise InvalidSample("no target", where, detail)
    pixels = load_pixels(sample.image, image_size, preprocessing, where, augment)
    return sample, {"image": pixels, **row}


class Loader:
    """Reads, tokenises and stacks samples in threads, ahead of the training.

    Args:
      source: the dataset.
      tokenizer: for its text.
      sampler: the order of the samples.
      batch_size: rows of a batch, over all processes.
      num_tokens: longer texts are cut, shorter ones padded to it, or to the bucket of
        the sampler.
      image_size: side of the images, in pixels.
      preprocessing: of image files, one of transforms.PREPROCESSING.
      invalid: counts invalid samples, and ends the run if there are too many.
      sharding: of a batch's rows over the devices; each process reads only the rows
        of its own devices.
      threads: that read.
      augment_seed: of random crops, flips and colours; None for none.
      tag_names: of the tags that batches carry; empty for none.
    """

    def __init__(
        self,
        source: DataSource,
        tokenizer: Tokenizer,
        *,
        sampler: ShuffledSampler,
        batch_size: int,
        num_tokens: int,
        image_size: int,
        preprocessing: str,
        invalid: InvalidSampleLog,
        sharding: jax.sharding.NamedSharding,
        threads: int,
        augment_seed: int | None = None,
        tag_names: tuple[str, ...] = (),
    ):
        self.source = source
        self.tokenizer = tokenizer
        self.invalid = invalid
        self.batch_size = batch_size
        self.sharding = sharding
        self.tag_names = tag_names
        self.spec = Batch.spec(
            batch_size, num_tokens, image_size, has_tags=bool(tag_names)
        )
        self._sampler, self._augment_seed = sampler, augment_seed
        self._preprocessing, self._threads = preprocessing, threads
        # The rows of this process, from its first device's to its last one's.
        rows = sharding.addressable_devices_indices_map((batch_size,)).values()
        bounds = [index[0].indices(batch_size)[:2] for index in rows]
        self._rows = range(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields the batches of steps start, ..., stop - 1, on the devices.

        Samples are read ahead in threads; closing the iterator stops them.

        Args:
          start: first step.
          stop: step to end before.

        Raises:
          DataError: too many samples are invalid, or a batch has no supervised token.
        """
        requests = (
            (position, self._sampler.index(position), spec.tokens.shape[1])
            for step in range(start, stop)
            for spec in [self.spec_of(step)]
            for position in self._positions(step)
        )
        # One stream over all batches, so that threads read the next one while this one
        # trains.
        count = len(self._rows)
        rows = ordered_map(self._read, requests, self._threads, _PREFETCH * count)
        with contextlib.closing(rows):
            for step in range(start, stop):
                batch = [*itertools.islice(rows, count)]
                yield self._stack(step, self.spec_of(step), batch)

    def image(self, index: int) -> np.ndarray:
        """Returns a sample's image, not augmented, uint8[image_size, image_size, 3].

        Raises:
          InvalidSample: it cannot be read.
        """
        where = self.source.describe(index)
        size = self.spec.image.shape[1]
        return load_pixels(self.source[index].image, size, self._preprocessing, where)

    def _positions(self, step: int) -> range:
        # Positions of the whole batch, so that the number of processes changes nothing.
        first = step * self.batch_size
        return range(first + self._rows.start, first + self._rows.stop)

    def spec_of(self, step: int) -> Batch:
        """Returns the shapes and dtypes of the batch of a step; T is that of its bucket."""
        longest = self.spec.tokens.shape[1]
        length = self._sampler.padded_length(step * self.batch_size, longest)
        return Batch.spec(
            self.batch_size,
            length,
            self.spec.image.shape[1],
            has_tags=bool(self.tag_names),
        )

    def _read(
        self, request: tuple[int, int, int]
    ) -> dict[str, np.ndarray] | InvalidSample:
        """The row of (position, sample, tokens)."""
        position, index, length = request
        seed = self._augment_seed
        try:
            return read_row(
                self.source,
                index,
                self.tokenizer,
                length,
                image_size=self.spec.image.shape[1],
                preprocessing=self._preprocessing,
                tag_names=self.tag_names,
                augment=None if seed is None else (seed, position),
            )[1]
        except InvalidSample as invalid:
            # An exception would end the stream; a row keeps its position.
            return invalid

    def _stack(
        self, step: int, spec: Batch, rows: list[dict[str, np.ndarray] | InvalidSample]
    ) -> Batch:
        self._count_invalid(step, rows)
        rows = [
            self._padding(spec) if isinstance(row, InvalidSample) else row
            for row in rows
        ]
        local = Batch(**{key: np.stack([r[key] for r in rows]) for key in rows[0]})
        return jax.tree.map(self._to_devices, local, spec)

    def _count_invalid(self, step: int, rows: list[dict | InvalidSample]) -> None:
        """Counts the invalid samples. Raises DataError if there are too many."""
        invalid = [row for row in rows if isinstance(row, InvalidSample)]
        if len(invalid) == len(rows) >= _MIN_UNSUPERVISED_ROWS and all(
            sample.reason == "no target" for sample in invalid
        ):
            raise DataError(
                f"a batch of {len(rows)} samples has no supervised token: check "
                f"data.source and data.num_tokens = {self.spec.tokens.shape[1]}"
            )
        for position, row in zip(self._positions(step), rows, strict=True):
            if isinstance(row, InvalidSample):
                self.invalid.add(position, self._sampler.index(position), row)
        if invalid:
            self.invalid.check((step + 1) * len(rows), invalid[-1])

    def _padding(self, spec: Batch) -> dict[str, np.ndarray]:
        """The row of an invalid sample: padding, without image or target."""
        leaves = {key: leaf for key, leaf in vars(spec).items() if leaf is not None}
        row = {
            key: np.zeros(leaf.shape[1:], leaf.dtype) for key, leaf in leaves.items()
        }
        row["tokens"] += np.int32(self.tokenizer.pad_id)
        return row

    def _to_devices(self, local: np.ndarray, spec: jax.ShapeDtypeStruct) -> jax.Array:
        # Called for each device: those that share rows get the same ones, read once.
        def rows(index):
            start, stop, _ = index[0].indices(self.batch_size)
            return local[start - self._rows.start : stop - self._rows.start]

        return jax.make_array_from_callback(spec.shape, self.sharding, rows)
