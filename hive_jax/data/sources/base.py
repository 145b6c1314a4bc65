"""Sources made of others: a part of one, or several mixed."""

import bisect
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from hive_jax.data.types import Sample
from hive_jax.errors import ConfigError, DataError

# An epoch of a mixture: more is refused, if it is ten times the samples that there are.
_LONGEST = 10**8


def normalize_weights(weights: Sequence[float]) -> list[float]:
    """Positive weights, of any magnitude, as shares that sum to 1."""
    largest = max(weights)
    weights = [weight / largest for weight in weights]  # whose sum is finite
    return [weight / sum(weights) for weight in weights]


def largest_remainder(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of these shares, 1 at least, that sum to `total`; what is over
    goes to the largest remainders. ConfigError if there is not one for each."""
    if total < len(shares):
        raise ConfigError(
            f"config.data.validation_size is {total}; expected at least one for each "
            f"of the {len(shares)} sources"
        )
    counts = [1] * len(shares)
    for _ in range(total - len(shares)):
        missing = [total * s - n for s, n in zip(shares, counts, strict=True)]
        counts[missing.index(max(missing))] += 1
    return counts


def require_length(
    names: Sequence[str], sizes: Sequence[int], shares: Sequence[float]
) -> None:
    """Raises ConfigError if an epoch with these shares is repetition without end."""
    needed = [n / s if s else math.inf for n, s in zip(sizes, shares, strict=True)]
    most, there = max(_LONGEST, 10 * sum(sizes)), sum(sizes)
    if max(needed) > most:
        rare = needed.index(max(needed))
        raise ConfigError(
            f"config.data.source: {names[rare]} has {sizes[rare]:,} samples; for them "
            f"to be a share of {shares[rare]:.2g}, an epoch of this mixture would have "
            f"{needed[rare]:.2g} samples, where there are {there:,}. Expected at most "
            f"{most:,}: raise its weight"
        )


class MalformedRecord(str):
    """What is wrong with a record, in its place."""


def is_utf8(text: str) -> bool:
    """Whether it has no half of a character, as "\\ud800" of JSON is one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def classes_of(source) -> tuple[str, ...]:
    """The names of the classes that samples of a source are of; none if it has none."""
    return getattr(source, "classes", ())


class Subset:
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
        return Subset(source, range(count))
    chosen = np.random.default_rng(seed).choice(len(source), count, replace=False)
    return Subset(source, np.sort(chosen))


def train_validation_split(source, split: str, size: int):
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
    return Subset(source, chosen)
