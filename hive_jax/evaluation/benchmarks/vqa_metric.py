"""Open answers against those of ten people, as VQA's evaluation server scores them."""

import re
import statistics
from collections.abc import Sequence

from hive_jax.errors import DataError

PEOPLE = 10
_NUMBERS = "none one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {
    "zero": "0"
}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # that are dropped; the server means a flag where it gives this count
# Endings, and the words that they are written onto.
_CONTRACTED = {
    "n't": "ai are ca could did does do had has have is might must need ought sha "
    "should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how somebody someone that there what when where who why",
    "'re": "there they what why you",
    "n't've": "could had might should would",
    "": "ma'am o'clock 'ow's'at 'twas y'all y'all'll y'all'd've",
}


def _misspelt() -> dict[str, str]:
    """A contraction with any one of its apostrophes left out -> the contraction."""
    right = [w + end for end, words in _CONTRACTED.items() for w in words.split()]
    found = {
        word[:i] + word[i + 1 :]: word
        for word in right
        for i, letter in enumerate(word)
        if letter == "'"
    }
    return found | {"somebody'd": "somebodyd"}  # the server's, the wrong way round


_MISSPELT = _misspelt()


def normalised(answer: str) -> str:
    """An answer as the server compares it: no case, punctuation or articles; digits.

    >>> normalised("The two dogs, at ten oclock.")
    "2 dogs at 10 o'clock"
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ")
    spaced = [m for m in _MARKS if f"{m} " in text or f" {m}" in text]
    for mark in _MARKS:
        text = text.replace(mark, "" if mark in spaced else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join(_MISSPELT.get(w, w) for w in words if w not in _ARTICLES)


def agreement(answer: str, people: Sequence[str]) -> float:
    """The mean over every choice of all people but one of min(1, matches / 3).

    Both the answer and those of the people as `normalised` gives them.
    """
    matches = [person == answer for person in people]
    total = sum(matches)
    return statistics.mean(min(1.0, (total - match) / 3) for match in matches)


def of_ten(answers: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The answers, if there are ten, and none is empty. Raises DataError."""
    if len(answers) != PEOPLE or not all(answer.strip() for answer in answers):
        empty = sum(not answer.strip() for answer in answers)
        raise DataError(
            f"{where} has {len(answers)} answers, {empty} of them empty; expected "
            f"{PEOPLE}, of as many people"
        )
    return answers
