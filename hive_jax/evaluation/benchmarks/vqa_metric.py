"""VQA accuracy: open answers against ten annotators, as the VQA server computes it."""

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
# The server passes re.UNICODE (32) to re.sub in the position of `count`, so that at most
# 32 periods are removed.
_PERIODS = 32
# Ending -> words it attaches to; spells out the server's table of contractions.
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
    """Maps each contraction with one apostrophe left out to its correct spelling."""
    contractions = [
        w + end for end, words in _CONTRACTED.items() for w in words.split()
    ]
    misspelt = {
        word[:i] + word[i + 1 :]: word
        for word in contractions
        for i, letter in enumerate(word)
        if letter == "'"
    }
    return misspelt | {"somebody'd": "somebodyd"}  # reversed in the server's table


_MISSPELT = _misspelt()


def normalised(answer: str) -> str:
    """Normalises an answer as the VQA server does before it compares answers.

    Lower-cases, removes punctuation and articles, writes number words up to ten as
    digits, and restores the apostrophes of contractions.

    >>> normalised("The two dogs, at ten oclock.")
    "2 dogs at 10 o'clock"
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ")
    # The server deletes a mark that stands next to a space anywhere in the text, and
    # replaces any other mark by a space.
    spaced = [m for m in _MARKS if f"{m} " in text or f" {m}" in text]
    for mark in _MARKS:
        text = text.replace(mark, "" if mark in spaced else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join(_MISSPELT.get(w, w) for w in words if w not in _ARTICLES)


def agreement(answer: str, people: Sequence[str]) -> float:
    """Computes the VQA accuracy of an answer, 0 to 1.

    An answer is fully correct if three annotators gave it: min(1, matches / 3), averaged
    over all subsets that leave one annotator out, as the VQA server does to be
    comparable with human accuracy.

    Args:
      answer: answer after `normalised`.
      people: answers of all annotators, also after `normalised`.
    """
    matches = [person == answer for person in people]
    total = sum(matches)
    return statistics.mean(min(1.0, (total - match) / 3) for match in matches)


def of_ten(answers: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Checks that a question has ten answers, and returns them.

    Args:
      answers: answers of all annotators.
      where: location of the question, for the error message.

    Raises:
      DataError: there are not ten answers, or one is blank.
    """
    if len(answers) != PEOPLE or not all(answer.strip() for answer in answers):
        empty = sum(not answer.strip() for answer in answers)
        raise DataError(
            f"{where} has {len(answers)} answers, {empty} of them empty; expected "
            f"{PEOPLE}, one of each annotator"
        )
    return answers
