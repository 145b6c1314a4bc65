"""Sources made of others: a part of one, or several mixed."""

import bisect
import hashlib
from collections.abc import Sequence

import numpy as np

from hive_jax.data.batch import Sample
from hive_jax.errors import ConfigError, DataError


def classes_of(source) -> tuple[str, ...]:
    """The names of the classes that samples of a source are of; none if it has none."""
    return getattr(source, "classes", ())


class Part:
    """The samples `indices` (increasing) of a source, in this order."""

    def __init__(self, source, indices: range | np.ndarray):
        self._source, self._indices = source, indices
        self.classes = classes_of(source)
        digest = hashlib.sha256(f"part {source.fingerprint}".encode())
        if isinstance(indices, range):
            digest.update(repr(indices).encode())
        else:
            digest.update(np.ascontiguousarray(indices, np.int64).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._indices[index])]

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))


class Mixture:
    """Several sources as one.

    Without weights each sample of each is there once. With weights, sources have these
    shares of the samples: the one that is largest for its share is there once, the
    others over and over.

    Args:
      weights: positive, one for each source; or empty.
    """

    def __init__(self, sources: Sequence, weights: Sequence[float] = ()):
        self._sources = tuple(sources)
        known = {classes_of(source) for source in sources}
        self.classes = known.pop() if len(known) == 1 else ()
        sizes = [len(source) for source in sources]
        if weights:
            total = max(n / w for n, w in zip(sizes, weights, strict=True))
            sizes = [max(1, round(total * weight)) for weight in weights]
        self._ends = np.cumsum(sizes).tolist()
        parts = [(s.fingerprint, n) for s, n in zip(sources, sizes, strict=True)]
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        source, inside = self._found(index)
        return source[inside]

    def where(self, index: int) -> str:
        source, inside = self._found(index)
        return source.where(inside)

    def _found(self, index: int):
        number = bisect.bisect_right(self._ends, index)
        if not 0 <= index or number == len(self._ends):
            raise IndexError(f"sample {index} of {len(self)}")
        source = self._sources[number]
        start = self._ends[number - 1] if number else 0
        return source, (index - start) % len(source)


def take(source, text: str, seed: int):
    """The part of a source that `first:N` or `random:N` names; N may be a share, 10%.

    Raises:
      ConfigError: it is neither.
      DataError: there are not so many samples.
    """
    how, _, number = text.partition(":")
    try:
        share = number.endswith("%")
        count = float(number[:-1]) / 100 * len(source) if share else int(number)
    except ValueError:
        count = 0
    if how not in ("first", "random") or not 0 < count < float("inf"):
        raise ConfigError(
            f"config.data.source: take={text}; expected first:N or random:N, with a "
            f"number of samples or a share as 10%"
        )
    count = max(1, round(count))
    if count > len(source):
        raise DataError(f"take={text}: there are {len(source)} samples")
    if how == "first":
        return Part(source, range(count))
    chosen = np.random.default_rng(seed).choice(len(source), count, replace=False)
    return Part(source, np.sort(chosen))


def held_out(source, split: str, size: int):
    """`size` samples of a source as "validation", the others as "train", both in order.

    They stand at equal distances, so that of a set sorted by classes, or by anything
    else, each part has its share.

    Raises DataError if there are no others.
    """
    if len(source) <= size:
        raise DataError(
            f"{source.where(0).split(', record')[0]}: {len(source)} records; expected "
            f"more than the data.validation_size = {size} that are held out"
        )
    chosen = np.arange(size) * len(source) // size
    if split == "train":
        chosen = np.delete(np.arange(len(source)), chosen)
    return Part(source, chosen)
