"""ScienceQA: multiple-choice school questions, about half of them with an image.

problems.json, pid_splits.json, and the images of the split test in images/test/ or
test/, or in test.zip:

    {"5": {"question": "...", "choices": ["yes", "no"], "answer": 1, "hint": "",
           "image": "image.png", "subject": "natural science", ...}, ...}
    {"test": ["5", ...], ...}

Or Parquet with the columns image, question, choices, answer and hint, in the folder
ScienceQA-FULL if there are several.
"""

from collections.abc import Sequence
from pathlib import Path

from hive_jax.errors import DataError
from hive_jax.evaluation.benchmarks import files
from hive_jax.evaluation.benchmarks.base import (
    LETTERS,
    Example,
    Examples,
    Scores,
    by_kind,
    percent,
)
from hive_jax.io import read_json

_SPLIT = "test"


def read(folder: str) -> Examples:
    """Reads the questions of the test split, with and without images.

    Raises:
      MissingInputError: a file or an image is missing.
      DataError: a file is malformed.
    """
    root = Path(folder)
    if files.has_parquet(root):
        return _from_parquet(root)
    path, splits = root / "problems.json", root / "pid_splits.json"
    problems = read_json(path)
    names = read_json(splits)
    examples = []
    for name in files.texts(names, _SPLIT, str(splits)):
        record = files.field(problems, name, dict, str(path))
        where = f"{path}, problem {name}"
        image = record.get("image")
        if image is not None:
            image = f"{_SPLIT}/{name}/{files.text(record, 'image', where)}"
        examples.append(_example(name, record, image, where))
    above = root / "images" if (root / "images").is_dir() else root
    return Examples(folder, examples, files.image_store(above, _SPLIT))


def parse(prediction: str) -> str:
    """Extracts the letter of the chosen option, as lmms-eval does.

    Accepts a single character in either case ("B", "b"), or an upper-case letter and a
    period at the start ("B. yes", but not "b. yes"). Returns "" for anything else.
    """
    text = prediction.strip()
    if len(text) == 1:
        return text.upper()
    return text[0] if len(text) > 1 and text[0].isupper() and text[1] == "." else ""


def score(examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
    """Computes the share of correct letters, in percent, as lmms-eval does.

    full         all questions, if some have no image: lmms-eval's task scienceqa
    image_only   questions with an image: its task scienceqa_img, SQA-I of LLaVA

    Args:
      examples: questions with their correct answers.
      predictions: generated text of each example, in the same order.
    """
    parsed = tuple(map(parse, predictions))
    correct = tuple(
        float(answer == example.answers[0])
        for example, answer in zip(examples, parsed, strict=True)
    )
    pairs = zip(examples, correct, strict=True)
    with_image = [value for example, value in pairs if example.image is not None]
    scored = {"full": correct} if len(with_image) < len(correct) else {}
    if with_image:
        scored["image_only"] = with_image
    totals = {name: percent(values) for name, values in scored.items()}
    counts = {name: len(values) for name, values in scored.items()}
    return Scores(totals, counts, by_kind(examples, correct), parsed, correct)


def _from_parquet(root: Path) -> Examples:
    table = files.Table(root, "ScienceQA-FULL", _SPLIT)
    rows = table.rows("question", "choices", "answer", "hint", also="subject")
    examples = [
        _example(number, row, number if table.has(number) else None, where)
        for where, number, row in rows
    ]
    return Examples(str(root), examples, table)


def _example(name: str, record: dict, image: str | None, where: str) -> Example:
    choices = files.texts(record, "choices", where)
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where} has {len(choices)} choices; expected 2 or more")
    answer = files.field(record, "answer", int, where)
    if not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: answer is {answer}, out of range: it has the choices 0 to "
            f"{len(choices) - 1}"
        )
    subject = record.get("subject")
    return Example(
        name,
        files.text(record, "question", where),
        (LETTERS[answer],),
        image,
        choices,
        hint=files.expect(record.get("hint") or "", str, f"{where}: hint"),
        kinds=(subject,) if isinstance(subject, str) and subject else (),
    )
