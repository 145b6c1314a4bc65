"""Comparison of evaluations: differences from a reference, with statistics.

A score is a sum over strata of means over groups. Most benchmarks have a single stratum
in which each question is a group; in MME a stratum is a category, and a group the two
questions of an image. Intervals come from a paired bootstrap, p values from a sign-flip
permutation test.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from hive_jax.buckets import as_path
from hive_jax.config import differences
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.evaluation.benchmarks import mme
from hive_jax.evaluation.results import RESULT, SAMPLES
from hive_jax.io import read_json, read_text, require_path
from hive_jax.json_text import parse_json, require_types

# Settings that must be equal in all evaluations of a comparison.
_SAME = (
    "n",
    "data",
    "variant",
    "prompt",
    "decoding",
    "train_data",
    "classes",
    "recipe",
    "templates",
)
# MME has two scores: sums over its categories of perception, and of cognition.
_MME = {"perception": mme.PERCEPTION, "cognition": mme.COGNITION}
# Enough for the 2.5 % quantiles: 50 draws are beyond each.
DRAWS = 2000
_LEVEL = 95  # confidence level of the intervals, in percent
# Types of the values of a sample that are compared.
_SAMPLE = {"id": object, "score": int | float}
_MME_SAMPLE = {"group": str, "kinds": list}


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


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of one task.

    Attributes:
      folder: folder with the two files below.
      result: content of result.json.
      samples: content of samples.jsonl.
    """

    folder: Path
    result: dict
    samples: list[dict]


@dataclasses.dataclass(frozen=True)
class ScoreComparison:
    """One score of several named models, the first being the reference.

    Attributes:
      title: task and score.
      seeds: name -> score of each of its seeds.
      differences: name -> difference from the reference.
    """

    title: str
    seeds: dict[str, list[float]]
    differences: dict[str, Difference]


def read_evaluations(folder: str) -> dict[str, Evaluation]:
    """Reads the evaluations, by task, in a workdir of a run or a folder of evaluations.

    Raises:
      MissingInputError: the folder has no evaluations.
      ConfigError: the folder is a URL that cannot be opened.
      DataError: an evaluation is malformed.
    """
    require_path(folder, "folder")
    root = as_path(folder)
    # A run's own evaluations are in WORKDIR/evaluation.
    root = root / "evaluation" if (root / "evaluation").is_dir() else root
    evaluations = {}
    for path in sorted(root.glob(f"*/{RESULT}")):
        # A result.json of something else, as of a run.
        if not (path.parent / SAMPLES).is_file():
            continue
        result = read_json(path)
        require_types(result, {"task": str, "scores": dict}, str(path))
        types = _SAMPLE | (_MME_SAMPLE if result["task"] == "mme" else {})
        file, samples = path.parent / SAMPLES, []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            where = f"{file}, line {number}"
            samples.append(parse_json(line, where, dict))
            require_types(samples[-1], types, where)
        evaluations[result["task"]] = Evaluation(path.parent, result, samples)
    if not evaluations:
        raise MissingInputError(
            f"{folder}: expected TASK/{RESULT} and {SAMPLES} of python -m "
            "hive_jax.evaluate or hive_jax.probe"
        )
    return evaluations


def compare(folders: Mapping[str, Sequence[str]]) -> list[ScoreComparison]:
    """Compares each task that the first name, the reference, shares with another.

    Args:
      folders: name -> a folder for each seed.

    Raises:
      ConfigError: fewer than two names.
      DataError: evaluations of a task are of other data, prompts or settings, each of
        which is named, or of other questions.
    """
    if len(folders) < 2:
        raise ConfigError(
            f"the names are {', '.join(folders) or 'missing'}; expected two or more, as "
            "in base=FOLDER hive=FOLDER"
        )
    evaluations = {
        name: [read_evaluations(f) for f in paths] for name, paths in folders.items()
    }
    reference = next(iter(evaluations))
    rows = []
    # A task counts for a name if each of its seeds has it.
    for task in evaluations[reference][0]:
        by_name = {
            name: [tasks[task] for tasks in several]
            for name, several in evaluations.items()
            if all(task in tasks for tasks in several)
        }
        if reference in by_name and len(by_name) > 1:
            _require_same(task, by_name)
            # Settings first: other prompts would show as a difference of models.
            rows += _rows(task, by_name)
    if not rows:
        raise MissingInputError(
            f"no task was evaluated for {reference} and for another name; expected one "
            "in all folders of both"
        )
    return rows


def _require_same(task: str, by_name: Mapping[str, list[Evaluation]]) -> None:
    everything = [one for several in by_name.values() for one in several]
    first = everything[0]
    settings = {key: first.result.get(key) for key in _SAME}
    ids = [sample["id"] for sample in first.samples]
    for other in everything[1:]:
        others_settings = {key: other.result.get(key) for key in _SAME}
        if changed := differences(settings, others_settings):
            listed = "\n  ".join(changed)
            raise DataError(
                f"{task}: {first.folder} and {other.folder} cannot be compared (the one "
                f"-> the other):\n  {listed}"
            )
        # In the same order: the bootstrap pairs answers by position.
        if [sample["id"] for sample in other.samples] != ids:
            raise DataError(
                f"{task}: {first.folder} and {other.folder} cannot be compared: their "
                "questions differ; evaluate both on the same files"
            )


def _rows(task: str, by_name: Mapping[str, list[Evaluation]]) -> list[ScoreComparison]:
    scores = _MME if task == "mme" else {"": ()}
    rows = []
    for score, categories in scores.items():
        strata = {
            name: _strata(several, categories) for name, several in by_name.items()
        }
        reference, *others = strata
        # MME without a question of these categories.
        if not strata[reference]:
            continue
        answers = {name: _answers(s, categories) for name, s in by_name.items()}
        rows.append(
            ScoreComparison(
                " ".join(filter(None, (task, score))),
                {name: total(values).tolist() for name, values in strata.items()},
                {
                    name: difference(
                        strata[reference],
                        strata[name],
                        (answers[reference], answers[name]),
                    )
                    for name in others
                },
            )
        )
    return rows


def _answers(several: list[Evaluation], categories: Sequence[str]) -> np.ndarray:
    """Returns float[seeds, questions], scores within the categories, or all if empty."""
    return np.array(
        [[s["score"] for s in one.samples if _is_of(s, categories)] for one in several]
    )


def _strata(
    several: list[Evaluation], categories: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns stratum -> values[seeds, groups], in points of the score."""
    if not categories:
        return {"all": 100 * _answers(several, ())}
    points = {}
    for one in several:
        pairs = collections.defaultdict(lambda: collections.defaultdict(list))
        for sample in one.samples:
            if _is_of(sample, categories):
                pairs[sample["kinds"][0]][sample["group"]].append(sample["score"])
        for category, groups in pairs.items():
            values = [mme.image_points(pair) for pair in groups.values()]
            points.setdefault(category, []).append(values)
    return {category: np.array(values) for category, values in points.items()}


def _is_of(sample: dict, categories: Sequence[str]) -> bool:
    return not categories or sample["kinds"][0] in categories


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
