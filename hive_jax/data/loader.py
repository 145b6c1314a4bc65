"""Batches that are a function of (seed, step) alone.

Step s reads positions s * batch_size and on of the order, whatever the number of hosts
or threads, so the step number is the whole state of the loader. A bad sample keeps its
position: its row says nothing, and no part of the loss is taken on it.
"""

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from hive_jax.data.invalid import InvalidSample, InvalidSampleLog
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.data.tokenizer import Tokenizer, encode_sample
from hive_jax.data.transforms import load_pixels
from hive_jax.data.types import Batch, Sample
from hive_jax.errors import DataError

# Rows that are no accident, if none of them has a supervised token.
_TELLING = 8


class Loader:
    """Reads, tokenises and stacks samples in threads, ahead of the training.

    Args:
      source: random-access samples; see hive_jax/data/sources/registry.py.
      tokenizer: for their text.
      order: of the samples.
      num_tokens: that longer texts are cut at, and shorter ones padded to where the
        order does not say otherwise.
      preprocessing: of image files; see hive_jax/data/transforms.py.
      bad: counts what cannot be used, and ends the run if it is too much.
      sharding: of a batch's rows over the devices; each process reads only the
        rows of its own devices.
      augment_seed: of random crops, flips and colours; None for none.
    """

    def __init__(
        self,
        source,
        tokenizer: Tokenizer,
        *,
        order: ShuffledSampler,
        batch_size: int,
        num_tokens: int,
        image_size: int,
        preprocessing: str,
        bad: InvalidSampleLog,
        sharding: jax.sharding.NamedSharding,
        threads: int,
        augment_seed: int | None = None,
    ):
        self.source = source
        self.tokenizer = tokenizer
        self.bad = bad
        self.batch_size = batch_size
        self.sharding = sharding
        self.spec = Batch.spec(batch_size, num_tokens, image_size)
        self._order, self._augment_seed = order, augment_seed
        self._preprocessing, self._threads = preprocessing, threads
        rows = sharding.addressable_devices_indices_map((batch_size,)).values()
        bounds = [index[0].indices(batch_size)[:2] for index in rows]
        self._rows = range(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start, ..., stop - 1, on the devices."""
        pool = ThreadPoolExecutor(self._threads)
        ahead = collections.deque()
        try:
            for step in range(start, stop):
                spec = self._spec(step)
                ahead.append((step, spec, self._submit(pool, step, spec)))
                if len(ahead) > 2:
                    yield self._collect(*ahead.popleft())
            while ahead:
                yield self._collect(*ahead.popleft())
        finally:  # an error, or the caller has enough: what is queued is not read
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: int, spec: Batch) -> list:
        length = spec.tokens.shape[1]
        first = step * self.batch_size
        return [
            pool.submit(self._read, p, self._order.index(p), length)
            for p in range(first + self._rows.start, first + self._rows.stop)
        ]

    def _spec(self, step: int) -> Batch:
        longest = self.spec.tokens.shape[1]
        length = self._order.padded_to(step * self.batch_size, longest)
        return Batch.spec(self.batch_size, length, self.spec.image.shape[1])

    def image(self, index: int) -> np.ndarray:
        """The image of a sample as it is, uint8[image_size, image_size, 3]. Raises
        InvalidSample."""
        return self._pixels(index, self.source[index], None)

    def _read(
        self, position: int, index: int, length: int
    ) -> dict[str, np.ndarray] | InvalidSample:
        try:
            sample = self.source[index]
            row = encode_sample(sample, self.tokenizer, length)
            if not row["target"].any():
                detail = "has no supervised token within data.num_tokens"
                raise InvalidSample("no target", self.source.where(index), detail)
            return {"image": self._pixels(index, sample, position), **row}
        except InvalidSample as bad:
            return bad

    def _pixels(self, index: int, sample: Sample, position: int | None) -> np.ndarray:
        """The image of a sample, augmented for a position of the run if it has one."""
        seed = self._augment_seed
        augment = None if seed is None or position is None else (seed, position)
        size, where = self.spec.image.shape[1], self.source.where(index)
        return load_pixels(sample.image, size, self._preprocessing, where, augment)

    def _collect(self, step: int, spec: Batch, futures: list) -> Batch:
        rows = [future.result() for future in futures]
        self._account(step, rows)
        rows = [
            self._nothing(spec) if isinstance(row, InvalidSample) else row
            for row in rows
        ]
        local = Batch(**{key: np.stack([r[key] for r in rows]) for key in rows[0]})
        return jax.tree.map(self._place, local, spec)

    def _account(self, step: int, rows: list[dict | InvalidSample]) -> None:
        """Counts the bad ones, and raises DataError if there are too many."""
        found = [row for row in rows if isinstance(row, InvalidSample)]
        if len(found) == len(rows) >= _TELLING and all(
            x.reason == "no target" for x in found
        ):
            raise DataError(
                f"a batch of {len(rows)} samples has no supervised token: check "
                f"data.source and data.num_tokens = {self.spec.tokens.shape[1]}"
            )
        for number, row in zip(self._rows, rows, strict=True):
            if isinstance(row, InvalidSample):
                position = step * self.batch_size + number
                self.bad.add(position, self._order.index(position), row)
        if found:
            self.bad.check((step + 1) * len(rows), found[-1])

    def _nothing(self, spec: Batch) -> dict[str, np.ndarray]:
        """The row of a bad sample: padding, without image or target."""
        leaves = vars(spec).items()
        row = {key: np.zeros(leaf.shape[1:], leaf.dtype) for key, leaf in leaves}
        row["tokens"] += np.int32(self.tokenizer.pad_id)
        return row

    def _place(self, local: np.ndarray, spec: jax.ShapeDtypeStruct) -> jax.Array:
        def rows(index):
            start, stop, _ = index[0].indices(self.batch_size)
            return local[start - self._rows.start : stop - self._rows.start]

        return jax.make_array_from_callback(spec.shape, self.sharding, rows)
