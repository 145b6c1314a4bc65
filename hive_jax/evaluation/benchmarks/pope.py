"""POPE: yes/no questions on whether an object is in a photo; half the answers are no.

coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, JSON lines,
and val2014/ or val2014.zip with COCO's images:

    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg",
     "text": "Is there a snowboard in the image?", "label": "yes"}

Or Parquet with the columns question_id, image, question, answer and category.
"""

from collections.abc import Sequence
from pathlib import Path

from hive_jax.errors import DataError, MissingInputError
from hive_jax.evaluation.benchmarks import files
from hive_jax.evaluation.benchmarks.base import (
    Example,
    Examples,
    Scores,
    by_kind,
    percent,
)
from hive_jax.io import read_text
from hive_jax.json_text import parse_json

_KINDS = ("random", "popular", "adversarial")


def read(folder: str) -> Examples:
    """Reads the questions of all sampling settings present in the folder.

    Raises:
      MissingInputError: there is no question file, or an image is missing.
      DataError: a file is malformed.
    """
    root = Path(folder)
    if files.has_parquet(root):
        table = files.Table(root, "", "test")
        rows = table.rows("question_id", "question", "answer", "category")
        examples = [
            _example(row, image, "question", "answer", row["category"], where)
            for where, image, row in rows
        ]
        return Examples(folder, examples, table)
    paths = {kind: root / f"coco_pope_{kind}.json" for kind in _KINDS}
    paths = {kind: path for kind, path in paths.items() if path.is_file()}
    if not paths:
        raise MissingInputError(f"{folder}: expected Parquet, or coco_pope_random.json")
    examples = []
    for kind, path in paths.items():
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = files.expect(parse_json(line, where), dict, where)
            image = f"val2014/{files.text(record, 'image', where)}"
            examples.append(_example(record, image, "text", "label", kind, where))
    return Examples(folder, examples, files.image_store(root, "val2014"))


def score(examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
    """Computes accuracy, and precision, recall and F1 of "yes", as lmms-eval does.

    All are in percent. A prediction counts only if it is exactly "yes" or "no" after
    lower-casing and stripping. As in lmms-eval, yes_ratio is the share of "yes" among
    the correct answers, not among the predictions.

    Args:
      examples: questions with their correct answers.
      predictions: generated text of each example, in the same order.
    """
    parsed = tuple(prediction.lower().strip() for prediction in predictions)
    right = [example.answers[0] for example in examples]
    correct = tuple(float(p == r) for p, r in zip(parsed, right, strict=True))
    count = {pair: 0 for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes"))}
    for pair in zip(parsed, right, strict=True):
        count[pair] = count.get(pair, 0) + 1
    hits = count["yes", "yes"]
    precision = _share(hits, count["yes", "no"])
    recall = _share(hits, count["no", "yes"])
    both = precision + recall
    totals = {
        "accuracy": percent(correct),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * (2 * (precision * recall) / both if both else 0),
        "yes_ratio": percent([answer == "yes" for answer in right]),
    }
    counts = dict.fromkeys(totals, len(examples))
    return Scores(totals, counts, by_kind(examples, correct), parsed, correct)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else 0.0


def _example(record, image: str, question: str, answer: str, kind, where: str):
    right = files.text(record, answer, where).lower().strip()
    if right not in ("yes", "no"):
        raise DataError(f"{where}: {answer} is {right!r}; expected yes or no")
    return Example(
        f"{kind} {files.identity(record, 'question_id', where)}",
        files.text(record, question, where).strip(),
        (right,),
        image,
        kinds=(files.expect(kind, str, f"{where}: category"),),
    )
