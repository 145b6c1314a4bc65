"""MME: two yes/no questions per image, in 14 categories.

The authors' release has a folder for each category, with images and questions side by
side or in two subfolders:

    existence/0001.jpg, existence/0001.txt
    artwork/images/0001.jpg, artwork/questions_answers_YN/0001.txt

A text file has one question per line, "Is there a dog in this image? Please answer yes or no."
and, after a tab, "Yes" or "No". Or Parquet with the columns question_id, image, question,
answer and category.
"""

import collections
from collections.abc import Sequence
from pathlib import Path

from hive_jax.data.image_io import HEADER_BYTES, image_format
from hive_jax.data.sources.image_store import FolderStore
from hive_jax.errors import DataError, MissingInputError
from hive_jax.evaluation.benchmarks import files
from hive_jax.evaluation.benchmarks.base import Example, Examples, Scores, percent
from hive_jax.json_text import decode_text

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene"),
    *("landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation"),
    "code_reasoning",
)
_SUFFIX = " Please answer yes or no."


def read(folder: str) -> Examples:
    """Reads both questions of every image.

    Raises:
      MissingInputError: there are no category folders, or an image is missing.
      DataError: a file is malformed, or an image does not have two questions.
    """
    root = Path(folder)
    if files.has_parquet(root):
        table = files.Table(root, "", "test")
        rows = table.rows("question_id", "question", "answer", "category")
        questions = [
            (where, *(files.text(row, key, where) for key in row), image)
            for where, image, row in rows
        ]
        return _examples(folder, questions, table)
    categories = [c for c in (*PERCEPTION, *COGNITION) if (root / c).is_dir()]
    if not categories:
        raise MissingInputError(
            f"{folder}: expected Parquet, or folders named {', '.join(PERCEPTION)}, "
            f"{', '.join(COGNITION)}"
        )
    store = FolderStore(folder)
    questions = [line for c in categories for line in _lines_of(root, c, store)]
    return _examples(folder, questions, store)


def parse(prediction: str) -> str:
    """Extracts "yes", "no" or "other" from a prediction, as MME's authors do.

    Accepts a single letter, or "yes" or "no" within the first four characters.
    """
    text = prediction.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def score(examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
    """Computes MME's points, as its authors and lmms-eval do.

    The score of a category is acc + acc+, at most 200: the percentage of questions
    answered correctly, plus the percentage of images with both questions correct.
    Perception and cognition are sums over the categories present.

    Args:
      examples: questions with their correct answers.
      predictions: generated text of each example, in the same order.

    Raises:
      DataError: an image does not have two questions.
    """
    parsed = tuple(map(parse, predictions))
    correct = tuple(
        float(answer == example.answers[0])
        for example, answer in zip(examples, parsed, strict=True)
    )
    images = {}
    for example, value in zip(examples, correct, strict=True):
        key = example.kinds[0], example.group
        images.setdefault(key, []).append(value)
    _require_pairs({key: len(values) for key, values in images.items()})
    categories = {}
    for (category, _), pair in images.items():
        categories.setdefault(category, []).append(pair)
    parts = {category: _points(pairs) for category, pairs in categories.items()}
    totals, counts = {}, {}
    for category, part in parts.items():
        name = "perception" if category in PERCEPTION else "cognition"
        totals[name] = totals.get(name, 0) + part["score"]
        counts[name] = counts.get(name, 0) + part["n"]
    return Scores(totals, counts, parts, parsed, correct)


def image_points(pair: Sequence[float]) -> float:
    """Returns acc + acc+ of one image, at most 200.

    Args:
      pair: scores of its two questions, 0 or 1 each.
    """
    # A correct question is half of acc.
    return 50 * sum(pair) + 100 * all(pair)


def _points(pairs: list[list[float]]) -> dict[str, float]:
    """Scores a category from the (0 or 1, 0 or 1) of each image's two questions."""
    points = [image_points(pair) for pair in pairs]
    return {
        "score": sum(points) / len(points),
        "acc": percent([value for pair in pairs for value in pair]),
        "acc+": percent([all(pair) for pair in pairs]),
        "n": 2 * len(pairs),
    }


def _lines_of(root: Path, category: str, store: FolderStore):
    """Yields (location, group, question, answer, category, image) of each question."""
    inner = "questions_answers_YN"
    apart = (root / category / inner).is_dir()
    texts = f"{category}/{inner}" if apart else category
    images = f"{category}/images" if apart else category
    image_names = _image_names(root / images)
    for name in sorted(path.name for path in (root / texts).glob("*.txt")):
        content = decode_text(store.read(f"{texts}/{name}"), str(root / texts / name))
        stem = name.removesuffix(".txt")
        image = f"{images}/{image_names.get(stem, stem + '.jpg')}"
        group = f"{category}/{image.rpartition('/')[2]}"
        for number, line in enumerate(content.strip().split("\n"), 1):
            if not line.strip():
                continue
            where = f"{root / texts / name}, line {number}"
            question, tab, answer = line.partition("\t")
            if not tab or not question.strip():
                raise DataError(
                    f"{where} is {line[:60]!r}; expected a question, a tab, Yes or No"
                )
            yield where, group, question, answer, category, image


def _image_names(folder: Path) -> dict[str, str]:
    """Name of each image file in a folder, by its name without the suffix."""
    names = {}
    for path in sorted(folder.glob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if image_format(file.read(HEADER_BYTES)):
                    names.setdefault(path.stem, path.name)
    return names


def _examples(folder: str, questions, store) -> Examples:
    number = collections.Counter()
    examples = []
    for where, group, question, answer, category, image in questions:
        if category not in PERCEPTION + COGNITION:
            raise DataError(
                f"{where}: category is {category!r}; expected one of "
                f"{', '.join(PERCEPTION + COGNITION)}"
            )
        right = answer.lower().strip().replace(".", "")
        if right not in ("yes", "no"):
            raise DataError(f"{where}: the answer is {answer!r}; expected Yes or No")
        number[category, group] += 1
        # lmms-eval replaces this instruction by the one of its prompt.
        question = question.strip().replace(_SUFFIX, "")
        name = f"{group}#{number[category, group]}"
        examples.append(
            Example(name, question, (right,), image, group=group, kinds=(category,))
        )
    _require_pairs(number)
    return Examples(folder, examples, store)


def _require_pairs(questions: dict[tuple[str, str], int]) -> None:
    """Raises DataError unless each (category, image) has two questions."""
    for (category, group), number in questions.items():
        if number != 2:
            raise DataError(
                f"MME: {category}, image {group} has {number} questions; acc+ needs "
                f"the two of each image"
            )
