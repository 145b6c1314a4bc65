"""Statistics of paired scores: differences, bootstrap intervals, sign-flip tests.

A score is a sum over strata of means over groups; see compare.py.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.stats

# Enough for the 2.5 % quantiles: 50 draws are beyond each.
DRAWS = 2000
_LEVEL = 95  # confidence level of the intervals, in percent


@dataclasses.dataclass(frozen=True)
class Difference:
    """A model's score minus the reference's.

    Attributes:
      value: the difference.
      low, high: ends of its 95 % interval.
      wins, losses, ties: numbers of questions answered better, worse, equally well,
        averaged over all pairs of seeds.
      p: p value of a two-sided sign-flip permutation test on the mean difference of
        questions (9999 resamples); with one seed each and binary scores exact, which is
        McNemar's test.
    """

    value: float
    low: float
    high: float
    wins: float
    losses: float
    ties: float
    p: float


def total(strata: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the score of each seed, float[seeds], from stratum -> values[seeds, groups]."""
    return np.sum([values.mean(axis=1) for values in strata.values()], axis=0)


def interval(
    reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """Computes the 95 % interval of other - reference by a paired bootstrap.

    Each draw resamples groups within each stratum, the same ones for both models because
    both answered the same questions, and seeds, independently for each model.

    Args:
      reference: stratum -> values[seeds, groups].
      other: same for the other model, with the groups in the same order.
      seed: random seed of the draws.

    Returns:
      (low, high), in points of the score.
    """
    rng = np.random.default_rng(seed)
    # Weights [DRAWS, seeds] of each model, the same for all strata.
    seed_weights = [
        _counts(rng, len(next(iter(x.values())))) for x in (reference, other)
    ]
    samples = np.zeros(DRAWS)
    for stratum, values in reference.items():
        groups = _counts(rng, values.shape[1])
        pairs = zip((-1, 1), (values, other[stratum]), seed_weights, strict=True)
        for sign, model_values, seeds in pairs:
            # [DRAWS, groups] x [groups, seeds] -> [DRAWS, seeds]: bootstrap means of
            # each seed.
            samples += sign * ((groups @ model_values.T) * seeds).sum(axis=1)
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(samples, (tail, 100 - tail))
    return float(low), float(high)


def difference(
    reference: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    answers: tuple[np.ndarray, np.ndarray],
) -> Difference:
    """Computes the difference of two scores, with its interval and p value.

    Args:
      reference: stratum -> values[seeds, groups], as for `interval`.
      other: same for the other model.
      answers: scores float[seeds, questions] of the reference and the other model.
    """
    low, high = interval(reference, other)
    # Every seed of one with every seed of the other: [seeds, seeds, questions].
    reference_answers, other_answers = answers
    pairs = other_answers[None] - reference_answers[:, None]
    # Scores that differ by rounding alone are ties.
    pairs[np.isclose(pairs, 0)] = 0
    wins, losses, ties = (
        float((np.sign(pairs) == sign).mean(axis=(0, 1)).sum()) for sign in (1, -1, 0)
    )
    value = float(total(other).mean() - total(reference).mean())
    # One difference a question, the unit of the test: seeds are averaged.
    p = _sign_test(pairs.mean(axis=(0, 1)))
    return Difference(value, low, high, wins, losses, ties, p)


def _sign_test(differences: np.ndarray) -> float:
    """Returns the two-sided p value of the mean of float[questions] under random signs."""
    # Ties have no sign to flip.
    uneven = differences[differences != 0]
    if not len(uneven):
        return 1.0
    if np.allclose(np.abs(uneven), np.abs(uneven[0])):
        # With equal magnitudes the test is a binomial test of the signs, which is exact.
        wins = int((uneven > 0).sum())
        return float(scipy.stats.binomtest(wins, len(uneven)).pvalue)
    # A fixed seed, so that a report says the same each time.
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
    """Draws bootstrap weights float[DRAWS, size]: how often each item occurs, over size."""
    return rng.multinomial(size, np.full(size, 1 / size), DRAWS) / size
