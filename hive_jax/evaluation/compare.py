"""Comparison of evaluations: differences from a reference, with statistics.

A score is a sum over strata of means over groups. Most benchmarks have a single stratum
in which each question is a group; in MME a stratum is a category, and a group the two
questions of an image. Intervals come from a paired bootstrap, p values from a sign-flip
permutation test.

A frozen encoder may be better before its last block, which pre-training has made for
another purpose. If the reference was probed at several depths, it is compared at the
best of these, too: training that improves the last block is not favoured by that.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.buckets import as_path
from hive_jax.config import differences
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.evaluation.benchmarks import mme
from hive_jax.evaluation.paired_statistics import Difference, difference, total
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
# Types of the values of a sample that are compared.
_SAMPLE = {"id": object, "score": int | float}
_MME_SAMPLE = {"group": str, "kinds": list}


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
      best_depth: encoder depth at which the reference has its best score; its score
        there has the name "REFERENCE, best depth", and other names the difference from
        it as "NAME - REFERENCE, best depth". 0 if it was evaluated at one depth only.
    """

    title: str
    seeds: dict[str, list[float]]
    differences: dict[str, Difference]
    best_depth: int = 0


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
            best = best_depth(evaluations[reference], task)
            # Settings first: other prompts would show as a difference of models.
            _require_same(task, {**by_name, "": best})
            rows += _rows(task, by_name, best)
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


def best_depth(several: Sequence[Mapping], task: str) -> list[Evaluation]:
    """Returns the evaluations of each seed at the depth with the best mean accuracy.

    The test data choose the depth, which favours it.

    Args:
      several: task -> evaluation, of each seed.
      task: of a probe at the last depth, which counts too.

    Returns:
      Empty unless each seed has the task at another depth.
    """
    prefix = f"{task}_depth"
    tasks = {name for name in several[0] if name.startswith(prefix)}
    tasks = [name for name in tasks if all(name in one for one in several)]
    if not tasks:
        return []
    by_depth = [[one[name] for one in several] for name in (task, *sorted(tasks))]
    return max(by_depth, key=lambda seeds: np.mean([_accuracy(one) for one in seeds]))


def _accuracy(evaluation: Evaluation) -> float:
    return evaluation.result["scores"]["accuracy"]


def _rows(
    task: str, by_name: Mapping[str, list[Evaluation]], best: list[Evaluation]
) -> list[ScoreComparison]:
    scores = _MME if task == "mme" else {"": ()}
    reference, *names = by_name
    best_name = f"{reference}, best depth"
    depth = best[0].result["checkpoint"]["depth"] if best else 0
    compared = {reference: by_name[reference]} | ({best_name: best} if best else {})
    compared |= {name: by_name[name] for name in names}
    rows = []
    for score, categories in scores.items():
        strata = {name: _strata(one, categories) for name, one in compared.items()}
        # MME without a question of these categories.
        if not strata[reference]:
            continue
        answers = {name: _answers(one, categories) for name, one in compared.items()}

        def between(first: str, second: str, strata=strata, answers=answers):
            pair = answers[first], answers[second]
            return difference(strata[first], strata[second], pair)

        found = {
            name: between(reference, name) for name in compared if name != reference
        }
        if best:
            found |= {f"{n} - {best_name}": between(best_name, n) for n in names}
        title = " ".join(filter(None, (task, score)))
        seeds = {name: total(values).tolist() for name, values in strata.items()}
        rows.append(ScoreComparison(title, seeds, found, depth))
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
