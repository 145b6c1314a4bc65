"""What a benchmark asks: Example (one question) and Examples (all, with their images).

And what came of it: Scores.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from hive_jax.errors import DataError, MissingInputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
      id: its own in the benchmark.
      question: as lmms-eval's prompts have it.
      answers: what is right; of choices, the letter; of annotators, all they said.
      image: the name of an image of the benchmark, or None for text alone.
      choices: what the letters A, B, ... stand for, if there are any.
      hint: a text to read before the question; empty for none.
      group: of examples that are scored together; empty where none are.
      kinds: what it is about; sub-scores are given by each of them.
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
    """What predictions were worth.

    Attributes:
      totals: name -> score of the benchmark, in percent; of MME, in its points.
      parts: kind -> name -> score of the examples of this kind, and their number "n".
      parsed: for each example, what was read from its prediction.
      correct: for each example, 0 to 1.
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
        """The content of its image file; None for text alone. Raises InvalidSample."""
        return None if example.image is None else self._store.read(example.image)


def prompt(template: str, example: Example) -> str:
    """A template of tasks.TASKS with an example's words in it.

    {question}, {context} (the hint on a line of its own, or nothing), {options} (the
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
    """Kind -> the share in percent that is correct, and n."""
    found = {}
    for example, value in zip(examples, correct, strict=True):
        for kind in example.kinds:
            found.setdefault(kind, []).append(value)
    return {
        kind: {"accuracy": percent(values), "n": len(values)}
        for kind, values in found.items()
    }
