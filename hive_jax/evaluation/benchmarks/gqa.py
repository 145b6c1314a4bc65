"""GQA: compositional questions about photos, answered by a word or phrase.

testdev_balanced_questions.json, an object of question ids, and images/ or images.zip:

    {"1": {"imageId": "n1", "question": "Is it red?", "answer": "yes",
           "types": {"structural": "verify", "semantic": "attr", ...}, ...}, ...}

Or Parquet in two folders, testdev_balanced_instructions and testdev_balanced_images.
"""

import string
from collections.abc import Sequence
from pathlib import Path

from hive_jax.evaluation.benchmarks import files
from hive_jax.evaluation.benchmarks.base import (
    Example,
    Examples,
    Scores,
    by_kind,
    percent,
)
from hive_jax.io import read_json

_FILE = "testdev_balanced_questions.json"
_COLUMNS = ("id", "imageId", "question", "answer")
_TYPES = ("structural", "semantic", "detailed")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(folder: str) -> Examples:
    """Reads the questions of the testdev_balanced split.

    Raises:
      MissingInputError: a file or an image is missing.
      DataError: a file is malformed.
    """
    root = Path(folder)
    if files.has_parquet(root):
        return _from_parquet(root)
    path = root / _FILE
    records = read_json(path)
    examples = []
    for name, record in records.items():
        where = f"{path}, question {name}"
        record = files.expect(record, dict, where)
        image = f"images/{files.text(record, 'imageId', where)}.jpg"
        examples.append(_example(name, record, image, where))
    return Examples(folder, examples, files.image_store(root, "images"))


def score(examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
    """Computes the share of correct answers, in percent.

    exact_match   as in lmms-eval: compared in lower case, without any punctuation
    official      as by GQA's authors and LLaVA: in lower case, without a final period

    Args:
      examples: questions with their correct answers.
      predictions: generated text of each example, in the same order.
    """
    parsed = tuple(_bare(prediction.strip()) for prediction in predictions)
    correct = tuple(
        float(answer == _bare(example.answers[0]))
        for example, answer in zip(examples, parsed, strict=True)
    )
    official = [
        prediction.strip().rstrip(".").lower() == example.answers[0].lower()
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    totals = {"exact_match": percent(correct), "official": percent(official)}
    counts = dict.fromkeys(totals, len(examples))
    return Scores(totals, counts, by_kind(examples, correct), parsed, correct)


def _bare(text: str) -> str:
    # The lower case of the Turkish capital I has two characters. lmms-eval lowers in a
    # fixed-width NumPy array, which truncates the result to the original length.
    return text.lower()[: len(text)].translate(_NO_PUNCTUATION)


def _from_parquet(root: Path) -> Examples:
    questions = files.Table(root, "testdev_balanced_instructions", "testdev", images="")
    photos = files.Table(root, "testdev_balanced_images", "testdev")
    images = {row["id"]: image for _, image, row in photos.rows("id")}
    examples = []
    for where, _, row in questions.rows(*_COLUMNS, also="types"):
        name = files.text(row, "imageId", where)
        image = images.get(name, f"image {name}")
        examples.append(_example(files.text(row, "id", where), row, image, where))
    return Examples(str(root), examples, photos)


def _example(name: str, record: dict, image: str, where: str) -> Example:
    types = files.expect(record.get("types") or {}, dict, f"{where}: types")
    return Example(
        name,
        files.text(record, "question", where),
        (files.text(record, "answer", where),),
        image,
        kinds=tuple(
            f"{key} {types[key]}" for key in _TYPES if isinstance(types.get(key), str)
        ),
    )
