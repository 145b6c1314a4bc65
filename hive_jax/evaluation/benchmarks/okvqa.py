"""OK-VQA: questions about COCO photos that need outside knowledge, ten answers each.

OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, and val2014/ or
val2014.zip with COCO's images:

    {"questions": [{"image_id": 7, "question": "...", "question_id": 75}, ...]}
    {"annotations": [{"question_id": 75, "question_type": "one",
                      "answers": [{"answer": "race", ...}, ...]}, ...],
     "question_types": {"one": "Vehicles and Transportation", ...}}

Or Parquet with the columns question_id, image, question and answers.
"""

from collections.abc import Sequence
from pathlib import Path

from hive_jax.errors import DataError
from hive_jax.evaluation.benchmarks import files
from hive_jax.evaluation.benchmarks.base import (
    Example,
    Examples,
    Scores,
    by_kind,
    percent,
)
from hive_jax.evaluation.benchmarks.vqa_metric import agreement, normalised, of_ten
from hive_jax.io import read_json

_QUESTIONS = "OpenEnded_mscoco_val2014_questions.json"
_ANNOTATIONS = "mscoco_val2014_annotations.json"


def read(folder: str) -> Examples:
    """Reads the questions of val2014.

    Raises:
      MissingInputError: a file or an image is missing.
      DataError: a file is malformed, or a question does not have ten answers.
    """
    root = Path(folder)
    if files.has_parquet(root):
        return _from_parquet(root)
    annotated = _annotations(root / _ANNOTATIONS)
    path = root / _QUESTIONS
    examples = []
    for where, record in _listed(read_json(path), "questions", path):
        number = files.field(record, "question_id", int, where)
        if number not in annotated:
            raise DataError(f"{where}: {_ANNOTATIONS} has no answers to {number}")
        answers, kinds = annotated[number]
        image = files.field(record, "image_id", int, where)
        example = Example(
            str(number),
            files.text(record, "question", where),
            answers,
            f"val2014/COCO_val2014_{image:012d}.jpg",
            kinds=kinds,
        )
        examples.append(example)
    return Examples(folder, examples, files.image_store(root, "val2014"))


def score(examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
    """Computes the mean VQA accuracy, in percent; see `vqa_metric.agreement`.

    exact_match   as in lmms-eval: with the normalisation of the VQA evaluation server

    Args:
      examples: questions with their correct answers.
      predictions: generated text of each example, in the same order.
    """
    parsed, correct = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        answer = normalised(prediction)
        parsed.append(answer)
        correct.append(agreement(answer, list(map(normalised, example.answers))))
    totals = {"exact_match": percent(correct)}
    parts = by_kind(examples, correct)
    counts = {"exact_match": len(examples)}
    return Scores(totals, counts, parts, tuple(parsed), tuple(correct))


def _listed(whole, key: str, path: Path | str):
    """Yields (location, record) of each object in the list under a key."""
    files.expect(whole, dict, str(path))
    for number, record in enumerate(files.field(whole, key, list, str(path))):
        where = f"{path}, {key}[{number}]"
        yield where, files.expect(record, dict, where)


def _annotations(path: Path) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Reads question_id -> (ten answers, (name of the question type,))."""
    whole, annotated = read_json(path), {}
    for where, record in _listed(whole, "annotations", path):
        answers = tuple(
            files.field(answer, "answer", str, location)
            for location, answer in _listed(record, "answers", where)
        )
        kind = files.field(record, "question_type", str, where)
        kinds = files.field(whole, "question_types", dict, str(path))
        number = files.field(record, "question_id", int, where)
        annotated[number] = of_ten(answers, where), (str(kinds.get(kind, kind)),)
    return annotated


def _from_parquet(root: Path) -> Examples:
    table = files.Table(root, "", "val2014")
    rows = table.rows("question_id", "question", "answers", also="question_type")
    examples = [
        Example(
            files.identity(row, "question_id", where),
            files.text(row, "question", where),
            of_ten(files.texts(row, "answers", where), where),
            image,
            kinds=(row["question_type"],) if row.get("question_type") else (),
        )
        for where, image, row in rows
    ]
    return Examples(str(root), examples, table)
