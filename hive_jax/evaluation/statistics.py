"""Is one better than the other? Paired bootstrap intervals and an exact test.

A score is a sum over strata of means over groups: one stratum and a question a group for
most benchmarks; for MME a stratum is a category and a group an image's two questions.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.stats

DRAWS = 2000
_LEVEL = 95  # percent of the draws that an interval holds


@dataclasses.dataclass(frozen=True)
class Difference:
    """Another's score minus the reference's.

    Attributes:
      low, high: ends of its 95 % interval.
      wins, losses, ties: questions that the other answers better, worse, equally well:
        the mean over all pairs of a seed of the one and a seed of the other.
      p: of so large a mean difference of the questions, or a larger one, if the sign of
        each were a matter of chance (two-sided; of 9999 draws). With one seed each, and
        answers that are right or wrong, exact, which is McNemar's test.
    """

    value: float
    low: float
    high: float
    wins: float
    losses: float
    ties: float
    p: float


def total(strata: Mapping[str, np.ndarray]) -> np.ndarray:
    """The score of each seed, from values[seeds, groups] of each stratum."""
    return np.sum([values.mean(axis=1) for values in strata.values()], axis=0)


def interval(
    reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of other - reference by a paired bootstrap.

    Each draw takes groups, the same of both, within each stratum, and seeds, of both
    apart, with replacement.

    Args:
      reference, other: stratum -> values[seeds, groups]; groups in the same order.
    """
    rng = np.random.default_rng(seed)
    picked = [_counts(rng, len(next(iter(x.values())))) for x in (reference, other)]
    drawn = np.zeros(DRAWS)
    for stratum, values in reference.items():
        groups = _counts(rng, values.shape[1])
        pairs = zip((-1, 1), (values, other[stratum]), picked, strict=True)
        for sign, of, seeds in pairs:
            drawn += sign * ((groups @ of.T) * seeds).sum(axis=1)
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return float(low), float(high)


def compare(
    reference: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    answers: tuple[np.ndarray, np.ndarray],
) -> Difference:
    """How another compares.

    Args:
      reference, other: as for `interval`.
      answers: scores[seeds, questions] of both.
    """
    low, high = interval(reference, other)
    before, after = answers
    pairs = after[None] - before[:, None]
    pairs[np.isclose(pairs, 0)] = 0
    wins, losses, ties = (
        float((np.sign(pairs) == sign).mean(axis=(0, 1)).sum()) for sign in (1, -1, 0)
    )
    value = float(total(other).mean() - total(reference).mean())
    p = _chance(pairs.mean(axis=(0, 1)))
    return Difference(value, low, high, wins, losses, ties, p)


def _chance(differences: np.ndarray) -> float:
    """Two-sided p of the mean of float[questions], if the signs were random."""
    uneven = differences[differences != 0]
    if not len(uneven):
        return 1.0
    if np.allclose(np.abs(uneven), np.abs(uneven[0])):
        wins = int((uneven > 0).sum())
        return float(scipy.stats.binomtest(wins, len(uneven)).pvalue)
    test = scipy.stats.permutation_test(
        (uneven,),
        lambda drawn, axis: drawn.mean(axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        batch=100,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _counts(rng: np.random.Generator, size: int) -> np.ndarray:
    """How often each of `size` is drawn, as shares, float[DRAWS, size]."""
    return rng.multinomial(size, np.full(size, 1 / size), DRAWS) / size
