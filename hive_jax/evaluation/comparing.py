"""Evaluations side by side: encoders against tasks, the first of them as the reference."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.config import differences
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.evaluation import mme
from hive_jax.evaluation.kept import RESULT, SAMPLES
from hive_jax.evaluation.statistics import Difference, compare, total
from hive_jax.io import read_json

# Settings in which evaluations that are compared must not differ.
_SAME = (
    *("n", "data", "variant", "prompt", "decoding", "train_data", "classes"),
    *("recipe", "templates"),
)
# MME is two numbers: the sum over its categories of perception, and of cognition.
_MME = {"perception": mme.PERCEPTION, "cognition": mme.COGNITION}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of one task.

    Attributes:
      result: what is in result.json.
      samples: what is in samples.jsonl.
    """

    folder: Path
    result: dict
    samples: list[dict]


@dataclasses.dataclass(frozen=True)
class Row:
    """A score of all that are compared.

    Attributes:
      title: of the task and the score.
      seeds: name -> the score of each of its evaluations.
      differences: name -> against the first name; those that have the task.
    """

    title: str
    seeds: dict[str, list[float]]
    differences: dict[str, Difference]


def read(folder: str) -> dict[str, Evaluation]:
    """Task -> its evaluation, of a run's workdir or an evaluation's folder.

    Raises MissingInputError, DataError.
    """
    root = Path(folder)
    root = root / "evaluation" if (root / "evaluation").is_dir() else root
    found = {}
    for path in sorted(root.glob(f"*/{RESULT}")):
        if not (path.parent / SAMPLES).is_file():
            continue
        try:
            result = read_json(path)
            lines = (path.parent / SAMPLES).read_text("utf-8").splitlines()
            samples = [json.loads(line) for line in lines]
            found[result["task"]] = Evaluation(path.parent, result, samples)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path.parent} is no evaluation: {error}") from None
    if not found:
        raise MissingInputError(
            f"{folder}: expected TASK/{RESULT} and {SAMPLES} of python -m "
            "hive_jax.evaluate or hive_jax.probe"
        )
    return found


def compared(folders: Mapping[str, Sequence[str]]) -> list[Row]:
    """A row for each score of each task that the first name and another one have.

    Raises:
      DataError: evaluations of a task are of other data, prompts or settings, each of
        which is named, or of other questions.
    """
    if len(folders) < 2:
        raise ConfigError(
            f"{', '.join(folders) or 'nothing'} to compare; expected two names or more, "
            "as in base=FOLDER hive=FOLDER"
        )
    read_ = {name: [read(f) for f in paths] for name, paths in folders.items()}
    reference = next(iter(read_))
    rows = []
    for task in read_[reference][0]:
        having = {
            name: [tasks[task] for tasks in several]
            for name, several in read_.items()
            if all(task in tasks for tasks in several)
        }
        if reference in having and len(having) > 1:
            _require_same(task, having)
            rows += _rows(task, having)
    if not rows:
        raise MissingInputError(f"no task is there for {reference} and another one")
    return rows


def _require_same(task: str, having: Mapping[str, list[Evaluation]]) -> None:
    everything = [one for several in having.values() for one in several]
    first = everything[0]
    settings = {key: first.result.get(key) for key in _SAME}
    ids = [sample["id"] for sample in first.samples]
    for other in everything[1:]:
        theirs = {key: other.result.get(key) for key in _SAME}
        if changed := differences(settings, theirs):
            listed = "\n  ".join(changed)
            raise DataError(
                f"{task}: {first.folder} and {other.folder} cannot be compared (the one "
                f"-> the other):\n  {listed}"
            )
        if [sample["id"] for sample in other.samples] != ids:
            raise DataError(
                f"{task}: {first.folder} and {other.folder} are of other questions"
            )


def _rows(task: str, having: Mapping[str, list[Evaluation]]) -> list[Row]:
    parts = _MME if task == "mme" else {"": ()}
    rows = []
    for part, categories in parts.items():
        strata = {
            name: _strata(several, categories) for name, several in having.items()
        }
        reference, *others = strata
        if not strata[reference]:
            continue
        answers = {name: _answers(s, categories) for name, s in having.items()}
        rows.append(
            Row(
                " ".join(filter(None, (task, part))),
                {name: total(values).tolist() for name, values in strata.items()},
                {
                    name: compare(
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
    """Scores[seeds, questions] of these categories, or of all."""
    return np.array(
        [[s["score"] for s in one.samples if _is_of(s, categories)] for one in several]
    )


def _strata(
    several: list[Evaluation], categories: Sequence[str]
) -> dict[str, np.ndarray]:
    """Stratum -> values[seeds, groups], in points of the score."""
    if not categories:
        return {"all": 100 * _answers(several, ())}
    found = {}
    for one in several:
        pairs = collections.defaultdict(lambda: collections.defaultdict(list))
        for sample in one.samples:
            if _is_of(sample, categories):
                pairs[sample["kinds"][0]][sample["group"]].append(sample["score"])
        for category, groups in pairs.items():
            points = [50 * sum(pair) + 100 * all(pair) for pair in groups.values()]
            found.setdefault(category, []).append(points)
    return {category: np.array(values) for category, values in found.items()}


def _is_of(sample: dict, categories: Sequence[str]) -> bool:
    return not categories or sample["kinds"][0] in categories
