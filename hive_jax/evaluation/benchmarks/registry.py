"""Registry of benchmarks: reader, scorer, prompts and decoding of each."""

import dataclasses
import os
from collections.abc import Callable, Sequence

from hive_jax.config import nearest
from hive_jax.downloads import local_copy
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.evaluation.benchmarks import gqa, mme, okvqa, pope, scienceqa, textvqa
from hive_jax.evaluation.benchmarks.base import Example, Examples, Scores
from hive_jax.io import is_folder, require_path

_ONE_WORD = "\nAnswer the question using a single word or phrase."
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_OR_UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      read: reads the examples from the folder of the benchmark.
      score: scores (examples, one prediction for each).
      prompts: variant -> template for `base.format_prompt`. "lmms_eval" is lmms-eval's
        default prompt for LLaVA; "plain" is the question without instructions.
      max_new_tokens: limit of an answer in tokens, as in lmms-eval.
      stop: strings that end an answer, as in lmms-eval.
    """

    read: Callable[[str], Examples]
    score: Callable[[Sequence[Example], Sequence[str]], Scores]
    prompts: dict[str, str]
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()


def _prompts(instruction: str) -> dict[str, str]:
    return {"lmms_eval": "{question}" + instruction, "plain": "{question}"}


TASKS = {
    "mme": Task(mme.read, mme.score, _prompts(_ONE_WORD)),
    "gqa": Task(gqa.read, gqa.score, _prompts(_ONE_WORD)),
    # lmms-eval's tasks ok_vqa and textvqa set no limit of their own, so that the default
    # of its LLaVA class applies: 1024 tokens.
    "okvqa": Task(
        okvqa.read,
        okvqa.score,
        _prompts(_OR_UNANSWERABLE + _ONE_WORD),
        max_new_tokens=1024,
        stop=("ASSISTANT:",),
    ),
    "textvqa": Task(
        textvqa.read,
        textvqa.score,
        _prompts(_ONE_WORD),
        max_new_tokens=1024,
        stop=("ASSISTANT:",),
    ),
    "scienceqa": Task(
        scienceqa.read,
        scienceqa.score,
        {
            "lmms_eval": "{context}{question}\n{options}" + _LETTER,
            "plain": "{context}{question} {inline}",
        },
    ),
    "pope": Task(pope.read, pope.score, _prompts(_ONE_WORD), max_new_tokens=128),
}


def find_task(name: str) -> Task:
    """Finds a task by name. Raises ConfigError."""
    if name not in TASKS:
        raise ConfigError(
            f"task is {name!r}; expected one of {', '.join(TASKS)}"
            + nearest(name, TASKS)
        )
    return TASKS[name]


def read_task(name: str, data: str) -> Examples:
    """Reads the examples of a benchmark from data/NAME.

    Args:
      name: name of the task in `TASKS`.
      data: folder with a subfolder for each task.

    Raises:
      ConfigError: unknown task, or `data` is a URL that cannot be opened.
      MissingInputError: the folder, a file or an image is missing.
      DataError: a file is malformed.
    """
    require_path(data, "data")
    task, folder = find_task(name), os.path.join(data, name)
    if not is_folder(folder):
        raise MissingInputError(
            f"{folder}: no such folder; expected the files of {name}"
        )
    return task.read(str(local_copy(folder)))
