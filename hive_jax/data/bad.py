"""Samples that cannot be trained on: what is wrong with each, and how many there are.

A bad sample keeps its place in its batch with a loss weight of 0. None stands in for
it, so the order of the others is what it would be without it.
"""

import collections
import json
import os
import sys
from pathlib import Path

from hive_jax.errors import DataError, OutputError

# The samples that a share is taken of are these many at least: one bad sample among
# the first eight is not yet an eighth of the set.
_AT_LEAST = 1000


class BadSample(DataError):
    """One sample that cannot be read.

    Attributes:
      reason: a short name to count by, e.g. "missing" or "damaged".
      where: the file and the record.
    """

    def __init__(self, reason: str, where: str, detail: str):
        where, detail = _printable(where), _printable(detail)
        super().__init__(f"{where}: {detail}")
        self.reason, self.where, self.detail = reason, where, detail


class BadSamples:
    """Counts the bad samples of a split by their reasons, each of them once.

    Args:
      size: samples of the split.
      max_fraction: the share that a run may have of them.
    """

    def __init__(self, split: str, size: int, max_fraction: float):
        self._split, self._size, self._max_fraction = split, size, max_fraction
        self._reasons: dict[int, str] = {}
        self._path = None

    def keep_in(self, path: Path, position: int) -> None:
        """Appends them to a file from now on, a JSON object a line.

        Lines of train samples at `position` of the run or after it, left by a run that
        was killed after its last checkpoint, are removed; the others count.
        """
        kept = []
        for line in _lines(path):
            if line["split"] != self._split:
                kept.append(line)
            elif line["position"] < position:
                kept.append(line)
                self._reasons[line["index"]] = line["reason"]
        temporary = path.with_suffix(".tmp")
        try:
            text = "".join(json.dumps(line) + "\n" for line in kept)
            temporary.write_text(text, "utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        self._path = path

    def add(self, position: int, index: int, bad: BadSample) -> None:
        """Counts sample `index`, which the run has read at `position`."""
        if index in self._reasons:
            return
        self._reasons[index] = bad.reason
        if self._path:
            line = {
                "split": self._split,
                "position": position,
                "index": index,
                "reason": bad.reason,
                "where": bad.where,
                "detail": bad.detail,
            }
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:  # a full disk does not end the training
                print(f"{self._path} cannot be written: {error}", file=sys.stderr)

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> samples, the most frequent first."""
        return dict(collections.Counter(self._reasons.values()).most_common())

    def check(self, read: int, last: BadSample) -> None:
        """Raises DataError if too many of the `read` samples so far are bad."""
        seen = max(min(read, self._size), min(_AT_LEAST, self._size))
        bad = len(self._reasons)
        if bad > self._max_fraction * seen:
            raise DataError(
                f"{bad} of {seen} {self._split} samples cannot be used: {self}; the "
                f"last: {last}. data.max_bad_fraction allows {self._max_fraction:.2%}"
                + (f"; each is named in {self._path}" if self._path else "")
            )

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in self.counts.items()) or "none"


def _printable(text: str) -> str:
    """The text with halves of characters as "\\ud800", which no file can have."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _lines(path: Path) -> list[dict]:
    """The objects of the file, without a last line that a kill cut short."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
