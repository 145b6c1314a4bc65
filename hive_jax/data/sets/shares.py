"""The shares that the sources of a mixture have: of an epoch, and of what is held out."""

import math
from collections.abc import Sequence

from hive_jax.errors import ConfigError

# An epoch of a mixture: more is refused, if it is ten times the samples that there are.
_LONGEST = 10**8


def shares_of(weights: Sequence[float]) -> list[float]:
    """Positive weights, of any magnitude, as shares that sum to 1."""
    largest = max(weights)
    weights = [weight / largest for weight in weights]  # whose sum is finite
    return [weight / sum(weights) for weight in weights]


def apportioned(total: int, shares: Sequence[float]) -> list[int]:
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
