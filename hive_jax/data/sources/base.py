"""The protocol of a dataset, and datasets made of others: subsets and mixtures."""

import bisect
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hive_jax.data.types import Sample
from hive_jax.errors import ConfigError, DataError

# A longer epoch of a mixture is refused if it also repeats its samples ten times.
_MAX_EPOCH = 10**8


class DataSource(Protocol):
    """Random access to the samples of a dataset, from any thread.

    Attributes:
      fingerprint: changes when the samples do; checkpoints record it.
      classes: names of the classes that its samples are labelled with; may be empty.
      tag_names: names of the tags of its tokens, the first for tokens without one;
        validation reports the loss of each. May be empty.
      notes: lines for people on what was left out of it, e.g. files that are not images;
        commands print them.
      has_conversations: whether samples may be conversations; see `Segment.role`.
    """

    fingerprint: str
    classes: tuple[str, ...]
    tag_names: tuple[str, ...]
    notes: tuple[str, ...]
    has_conversations: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`. Raises InvalidSample if it cannot be used."""

    def image_name(self, index: int) -> str | None:
        """A name of the image of a sample, the same for all samples of an image; None
        for no image, or one that no other sample has."""

    def describe(self, index: int) -> str:
        """The file and record of a sample, for messages."""


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """What a run needs from its datasets, whatever their format.

    Attributes:
      image_size: side of the square images, in pixels.
      preprocessing: of image files, one of transforms.PREPROCESSING.
      seed: of tabletop's scenes, and of take=random:N.
      max_bad_fraction: share of the images that may be missing.
      with_image: False to skip reading images, where the format allows.
    """

    image_size: int
    preprocessing: str
    seed: int = 0
    max_bad_fraction: float = 1.0
    with_image: bool = True


class MalformedRecord(str):
    """Placeholder for a record that cannot be parsed, with the reason."""


def is_utf8(text: str) -> bool:
    """Returns whether a text encodes as UTF-8: a lone surrogate, "\\ud800" in JSON, does
    not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Subset:
    """Some samples of a dataset.

    Args:
      source: the dataset.
      indices: the samples, in increasing order.
    """

    def __init__(self, source: DataSource, indices: range | np.ndarray):
        self._source, self._indices = source, indices
        self.classes, self.tag_names = source.classes, source.tag_names
        self.notes = source.notes
        self.has_conversations = source.has_conversations
        digest = hashlib.sha256(f"part {source.fingerprint}".encode())
        if isinstance(indices, range):
            digest.update(repr(indices).encode())
        else:
            # Checkpoints record it: default integers differ between platforms.
            digest.update(np.ascontiguousarray(indices, np.int64).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._indices[index])]

    def image_name(self, index: int) -> str | None:
        return self._source.image_name(int(self._indices[index]))

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))


class Mixture:
    """Several datasets as one.

    Without weights each sample of each occurs once. With weights the datasets have these
    shares of the samples: the one that is largest for its share occurs once, the others
    are repeated. Classes and tags are those that all of them share, or none.

    Args:
      sources: the datasets.
      weights: positive, one for each dataset; or empty.
    """

    def __init__(self, sources: Sequence[DataSource], weights: Sequence[float] = ()):
        self._sources = tuple(sources)
        self.classes = _shared([source.classes for source in sources])
        self.tag_names = _shared([source.tag_names for source in sources])
        self.notes = tuple(note for source in sources for note in source.notes)
        self.has_conversations = any(source.has_conversations for source in sources)
        sizes = [len(source) for source in sources]
        if weights:
            # The length at which the source that is rarest for its weight occurs once.
            total = max(n / w for n, w in zip(sizes, weights, strict=True))
            sizes = [max(1, round(total * weight)) for weight in weights]
        self._ends = np.cumsum(sizes).tolist()
        contents = [(s.fingerprint, n) for s, n in zip(sources, sizes, strict=True)]
        self.fingerprint = hashlib.sha256(repr(contents).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        source, index_in_source = self._locate(index)
        return source[index_in_source]

    def image_name(self, index: int) -> str | None:
        source, index_in_source = self._locate(index)
        return source.image_name(index_in_source)

    def describe(self, index: int) -> str:
        source, index_in_source = self._locate(index)
        return source.describe(index_in_source)

    def _locate(self, index: int) -> tuple[DataSource, int]:
        number = bisect.bisect_right(self._ends, index)
        if not 0 <= index or number == len(self._ends):
            raise IndexError(f"sample {index} of {len(self)}")
        source = self._sources[number]
        start = self._ends[number - 1] if number else 0
        # A source that is small for its weight starts over.
        return source, (index - start) % len(source)


def _shared(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return names[0] if len(set(names)) == 1 else ()


def take(source: DataSource, text: str, seed: int) -> Subset:
    """Returns the subset that a `take` option names.

    Args:
      source: the dataset.
      text: "first:N" or "random:N"; N is a number of samples, or a share as "10%".
      seed: of the random choice.

    Raises:
      ConfigError: `text` is neither.
      DataError: there are fewer samples.
    """
    how, _, number = text.partition(":")
    try:
        is_share = number.endswith("%")
        count = float(number[:-1]) / 100 * len(source) if is_share else int(number)
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
    # In the dataset's order, which formats read fastest; samplers shuffle.
    chosen = np.random.default_rng(seed).choice(len(source), count, replace=False)
    return Subset(source, np.sort(chosen))


def normalize_weights(weights: Sequence[float]) -> list[float]:
    """Scales positive weights so that they sum to 1."""
    largest = max(weights)
    weights = [weight / largest for weight in weights]  # else the sum may overflow
    return [weight / sum(weights) for weight in weights]


def largest_remainder(total: int, shares: Sequence[float]) -> list[int]:
    """Divides `total` into whole numbers proportional to `shares`, each at least 1.

    Args:
      total: what the numbers sum to.
      shares: positive, with a sum of 1.

    Raises:
      ConfigError: `total` is smaller than the number of shares.
    """
    if total < len(shares):
        raise ConfigError(
            f"config.data.validation_size is {total}; expected at least one for each "
            f"of the {len(shares)} sources"
        )
    # One at a time to the source that lacks most, so that the minimum of 1 of a rare
    # source is taken from the others.
    counts = [1] * len(shares)
    for _ in range(total - len(shares)):
        missing = [total * s - n for s, n in zip(shares, counts, strict=True)]
        counts[missing.index(max(missing))] += 1
    return counts


def require_epoch_length(
    names: Sequence[str], sizes: Sequence[int], shares: Sequence[float]
) -> None:
    """Checks that an epoch of a weighted mixture is not mostly repetition.

    Raises ConfigError.

    Args:
      names: of the datasets.
      sizes: their samples.
      shares: of each in the mixture; sum to 1.
    """
    needed = [n / s if s else math.inf for n, s in zip(sizes, shares, strict=True)]
    total = sum(sizes)
    limit = max(_MAX_EPOCH, 10 * total)
    if max(needed) > limit:
        rare = needed.index(max(needed))
        raise ConfigError(
            f"config.data.source: {names[rare]} has {sizes[rare]:,} samples; for them "
            f"to be a share of {shares[rare]:.2g}, an epoch of this mixture would have "
            f"{needed[rare]:.2g} samples, where there are {total:,}. Expected at most "
            f"{limit:,}: raise its weight"
        )
