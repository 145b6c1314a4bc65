"""Data types of benchmarks: Example (one question), Examples (with images), Scores."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from hive_jax.errors import DataError, MissingInputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
      id: unique within the benchmark.
      question: text of the question, as lmms-eval puts it into a prompt.
      answers: correct answers: one letter for multiple choice, otherwise the answers
        of all annotators.
      image: name of the image file, or None for a text-only question.
      choices: texts of the options A, B, ...; empty for open questions.
      hint: context that precedes the question; empty for none.
      group: examples with the same group are scored together; empty for none.
      kinds: categories of the example; each category gets a sub-score.
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
    """Scores of a set of predictions on a benchmark.

    Attributes:
      totals: score name -> score, in percent (MME: in points).
      counts: score name -> number of examples that it is a score of.
      parts: category -> score name -> score on that category, with the number of its
        examples as "n".
      parsed: answer extracted from each prediction, in the order of the examples.
      correct: score of each example, from 0 to 1, in the same order.
    """

    totals: dict[str, float]
    counts: dict[str, int]
    parts: dict[str, dict[str, float]]
    parsed: tuple[str, ...]
    correct: tuple[float, ...]


class Examples(Sequence):
    """Sequence of the examples of a benchmark, in file order, with their images.

    Attributes:
      path: folder of the benchmark.
      fingerprint: 16 hexadecimal digits of a hash over all examples (without pixels).

    Args:
      path: folder of the benchmark.
      examples: all examples.
      store: image store with `has(name)` and `read(name)`.

    Raises:
      DataError: there are no examples, or two share an id.
      MissingInputError: some images are missing; the message gives their number.
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
                f"{path}: {len(missing)} of {len(names)} images are not in {store.path}; "
                f"the first: {missing[0]}: {store.explain_missing(missing[0])}. Add "
                "them: scores over a subset are not comparable"
            )
        # JSON can encode lone surrogates, which plain UTF-8 refuses.
        content = repr(self._examples).encode("utf-8", "surrogatepass")
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]

    def image(self, example: Example) -> bytes | None:
        """Returns the bytes of an example's image file, or None for a text-only example.

        Raises:
          InvalidSample: the image file cannot be read.
        """
        return None if example.image is None else self._store.read(example.image)


def format_prompt(template: str, example: Example) -> str:
    """Fills in a prompt template of `registry.TASKS`.

    Args:
      template: text with the fields {question}, {context} (the hint on its own line, or
        nothing), {options} (one option per line) and {inline} (all options on one
        line).
      example: example to take the fields from.
    """
    choices = list(zip(LETTERS, example.choices))
    return template.format(
        question=example.question,
        context=f"Context: {example.hint}\n" if example.hint else "",
        options="\n".join(f"{letter}. {choice}" for letter, choice in choices),
        inline=" ".join(f"({letter}) {choice}" for letter, choice in choices),
    )


def percent(correct: Sequence[float]) -> float:
    """Returns the mean of scores between 0 and 1, in percent."""
    return 100 * (sum(correct) / len(correct))


def by_kind(
    examples: Sequence[Example], correct: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Averages the scores of the examples of each category.

    Args:
      examples: examples with their categories.
      correct: score of each example, from 0 to 1.

    Returns:
      Category -> {"accuracy": mean score in percent, "n": number of examples}. An
      example counts in each of its categories.
    """
    by_name = {}
    for example, value in zip(examples, correct, strict=True):
        for kind in example.kinds:
            by_name.setdefault(kind, []).append(value)
    return {
        kind: {"accuracy": percent(values), "n": len(values)}
        for kind, values in by_name.items()
    }
