"""Benchmarks by name: how each is read, asked, answered and scored."""

import dataclasses
import os
from collections.abc import Callable, Sequence

from hive_jax.config import nearest
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.evaluation import gqa, mme, okvqa, pope, scienceqa, textvqa
from hive_jax.evaluation.examples import Example, Examples, Scores

_SHORTLY = "\nAnswer the question using a single word or phrase."
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_IF_KNOWN = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      read: its folder -> its examples.
      score: examples and a prediction for each -> what they are worth.
      prompts: variant -> template, for `examples.prompt`. "lmms_eval" is lmms-eval's
        of LLaVA; "tabletop" asks as the built-in world does in training.
      max_new_tokens: of an answer, by lmms-eval.
      stop: texts that end an answer.
    """

    read: Callable[[str], Examples]
    score: Callable[[Sequence[Example], Sequence[str]], Scores]
    prompts: dict[str, str]
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()


def _prompts(after: str) -> dict[str, str]:
    return {"lmms_eval": "{question}" + after, "tabletop": "{question}"}


TASKS = {
    "mme": Task(mme.read, mme.score, _prompts(_SHORTLY)),
    "gqa": Task(gqa.read, gqa.score, _prompts(_SHORTLY)),
    # The two for which lmms-eval sets no limit but LLaVA's own.
    "okvqa": Task(
        okvqa.read,
        okvqa.score,
        _prompts(_IF_KNOWN + _SHORTLY),
        max_new_tokens=1024,
        stop=("ASSISTANT:",),
    ),
    "textvqa": Task(
        textvqa.read,
        textvqa.score,
        _prompts(_SHORTLY),
        max_new_tokens=1024,
        stop=("ASSISTANT:",),
    ),
    "scienceqa": Task(
        scienceqa.read,
        scienceqa.score,
        {
            "lmms_eval": "{context}{question}\n{options}" + _LETTER,
            "tabletop": "{context}{question} {inline}",
        },
    ),
    "pope": Task(pope.read, pope.score, _prompts(_SHORTLY), max_new_tokens=128),
}


def find_task(name: str) -> Task:
    """The task of a name. Raises ConfigError."""
    if name not in TASKS:
        raise ConfigError(
            f"task is {name!r}; expected one of {', '.join(TASKS)}"
            + nearest(name, TASKS)
        )
    return TASKS[name]


def read_task(name: str, data: str) -> Examples:
    """The examples of data/NAME. Raises ConfigError, MissingInputError, DataError."""
    task, folder = find_task(name), os.path.join(data, name)
    if not os.path.isdir(folder):
        raise MissingInputError(
            f"{folder}: no such folder; expected the files of {name}"
        )
    return task.read(folder)
