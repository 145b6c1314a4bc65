"""Data types of benchmarks: Example (a question), Examples (with images), Scores."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from hive_jax.errors import DataError, MissingInputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
      id: unique in the benchmark.
      question: as in lmms-eval's prompts.
      answers: correct answers: the letter of a choice; the answers of all annotators.
      image: name of an image of the benchmark, or None for text alone.
      choices: texts of the choices A, B, ..., if there are any.
      hint: text to read before the question; empty for none.
      group: name of a group of examples scored together; empty for none.
      kinds: categories, each of which has a sub-score.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    image: str | None = None
    choices: tuple[str, ...] = ()
    hint: str = ""
    group: str = ""
    kinds: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of the predictions on a benchmark.

    Attributes:
      totals: name -> score of the benchmark, in percent; for MME, in its points.
      parts: kind -> name -> score of the examples of this kind, and their number "n".
      parsed: the answer extracted from each prediction.
      correct: score of each example, 0 to 1.
    """

    totals: dict[str, float]
    parts: dict[str, dict[str, float]]
    parsed: tuple[str, ...]
    correct: tuple[float, ...]


class Examples(Sequence):
    """The examples of a benchmark, in the order of its files.

    Raises:
      DataError: there is none, or two have one id.
      MissingInputError: images are not there; says how many.
    """

    def __init__(self, path: str, examples: Iterable[Example], store):
        self.path, self._store = path, store
        self._examples = tuple(examples)
        if not self._examples:
            raise DataError(f"{path} has no questions")
        seen = set()
        for example in self._examples:
            if example.id in seen:
                raise DataError(f"{path} has two questions with the id {example.id}")
            seen.add(example.id)
        names = [e.image for e in self._examples if e.image is not None]
        missing = [name for name in names if not store.has(name)]
        if missing:
            raise MissingInputError(
                f"{path}: of {len(names)} questions with an image, {len(missing)} have "
                f"none in {store.path}; the first: {missing[0]}. Scores over a part "
                f"compare with nothing; add the images"
            )
        content = repr(self._examples).encode("utf-8", "surrogatepass")
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]

    def image(self, example: Example) -> bytes | None:
        """Bytes of an example's image file; None for text alone. Raises InvalidSample."""
        return None if example.image is None else self._store.read(example.image)


def format_prompt(template: str, example: Example) -> str:
    """Fills a template of `registry.TASKS` with an example.

    Fields are {question}, {context} (the hint on a line of its own, or nothing), {options} (the
    choices on a line each) and {inline} (the choices on one line).
    """
    choices = list(zip(LETTERS, example.choices))
    return template.format(
        question=example.question,
        context=f"Context: {example.hint}\n" if example.hint else "",
        options="\n".join(f"{letter}. {choice}" for letter, choice in choices),
        inline=" ".join(f"({letter}) {choice}" for letter, choice in choices),
    )


def percent(correct: Sequence[float]) -> float:
    """The mean, times 100."""
    return 100 * (sum(correct) / len(correct))


def by_kind(
    examples: Sequence[Example], correct: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Kind -> {"accuracy": percent correct, "n": number of examples}."""
    by_name = {}
    for example, value in zip(examples, correct, strict=True):
        for kind in example.kinds:
            by_name.setdefault(kind, []).append(value)
    return {
        kind: {"accuracy": percent(values), "n": len(values)}
        for kind, values in by_name.items()
    }
