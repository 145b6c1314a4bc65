"""TextVQA: questions about the text in a photo, ten answers each.

TextVQA_0.5.1_val.json, and train_images/ or train_images.zip:

    {"data": [{"question": "...", "question_id": 34602, "image_id": "003a8ae2ef43b901",
               "answers": ["nous", ...], ...}, ...]}

Or Parquet with the columns question_id, image, question and answers.
"""

from collections.abc import Sequence
from pathlib import Path

from hive_jax.evaluation.benchmarks import files
from hive_jax.evaluation.benchmarks.base import Example, Examples, Scores, percent
from hive_jax.evaluation.benchmarks.vqa_metric import agreement, normalised, of_ten
from hive_jax.io import read_json

_FILE = "TextVQA_0.5.1_val.json"


def read(folder: str) -> Examples:
    """Reads the questions of the validation split.

    Raises:
      MissingInputError: a file or an image is missing.
      DataError: a file is malformed, or a question does not have ten answers.
    """
    root = Path(folder)
    if files.has_parquet(root):
        table = files.Table(root, "", "validation")
        rows = table.rows("question_id", "question", "answers")
        examples = [_example(row, image, where) for where, image, row in rows]
        return Examples(folder, examples, table)
    path = root / _FILE
    whole = read_json(path)
    examples = []
    for number, record in enumerate(files.field(whole, "data", list, str(path))):
        where = f"{path}, data[{number}]"
        record = files.expect(record, dict, where)
        image = f"train_images/{files.text(record, 'image_id', where)}.jpg"
        examples.append(_example(record, image, where))
    return Examples(folder, examples, files.image_store(root, "train_images"))


def score(examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
    """Computes the mean VQA accuracy, in percent; see `vqa_metric.agreement`.

    exact_match   as in lmms-eval: with the normalisation of the VQA evaluation server

    Args:
      examples: questions with their correct answers.
      predictions: generated text of each example, in the same order.
    """
    parsed = tuple(map(normalised, predictions))
    correct = tuple(
        agreement(answer, list(map(normalised, example.answers)))
        for example, answer in zip(examples, parsed, strict=True)
    )
    totals, counts = {"exact_match": percent(correct)}, {"exact_match": len(examples)}
    return Scores(totals, counts, {}, parsed, correct)


def _example(record: dict, image: str, where: str) -> Example:
    return Example(
        files.identity(record, "question_id", where),
        files.text(record, "question", where).capitalize(),  # as lmms-eval does
        of_ten(files.texts(record, "answers", where), where),
        image,
    )
