"""Samples that cannot be trained on: what is wrong with each, and how many there are.

A bad sample keeps its place in its batch with a loss weight of 0. None stands in for
it, so the order of the others is what it would be without it.
"""

import collections
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hive_jax.errors import DataError, OutputError
from hive_jax.io import json_lines, write_text

# The samples that a share is taken of are these many at least: one bad sample among
# the first eight is not yet an eighth of the set.
_AT_LEAST = 1000
# Of a line of the file, what is read again.
_KEYS = {"split": str, "position": int, "index": int, "reason": str}


class InvalidSample(DataError):
    """One sample that cannot be read.

    Attributes:
      reason: a short name to count by, e.g. "missing" or "damaged".
      where: the file and the record.
    """

    def __init__(self, reason: str, where: str, detail: str):
        where, detail = _printable(where), _printable(detail)
        super().__init__(f"{where}: {detail}")
        self.reason, self.where, self.detail = reason, where, detail


class InvalidSampleLog:
    """Counts the bad samples of a split by their reasons, each of them once.

    Args:
      size: samples of the split.
      max_fraction: the share that a run may have of them.
      name: index -> what names a sample; a mixture has some at several indices.
    """

    def __init__(
        self,
        split: str,
        size: int,
        max_fraction: float,
        name: Callable[[int], str] = str,
    ):
        self._split, self._size, self._max_fraction = split, size, max_fraction
        self._name = name
        self._reasons: dict[int, str] = {}
        self._named: dict[str, str] = {}
        self._path = None

    def keep_in(self, path: Path, position: int | None) -> None:
        """Appends them to a file from now on, a JSON object a line.

        Lines of the split at `position` of the run or after it, left by a run that was
        killed after its last checkpoint, are removed; the others count. None keeps all.

        Raises:
          OutputError: the file cannot be read or written.
        """
        kept = []
        try:
            for line in _lines(path):
                if line["split"] != self._split:
                    kept.append(line)
                elif position is None or line["position"] < position:
                    kept.append(line)
                    self.include({line["index"]: line["reason"]})
            write_text(path, json_lines(kept))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        self._path = path

    def add(self, position: int, index: int, bad: InvalidSample) -> None:
        """Counts sample `index`, which the run has read at `position`."""
        if index in self._reasons:
            return
        known = self._name(index) in self._named
        self.include({index: bad.reason})
        if self._path and not known:
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

    def include(self, reasons: Mapping[int, str]) -> None:
        """Counts what was found elsewhere: index -> reason."""
        for index, reason in reasons.items():
            if 0 <= index < self._size:  # of this set, and not of the one before
                self._reasons[index] = reason
                self._named.setdefault(self._name(index), reason)

    @property
    def reasons(self) -> dict[int, str]:
        """Index -> reason of all that were found."""
        return dict(self._reasons)

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> samples, the most frequent first."""
        return _counts(self._named)

    def check(self, read: int, last: InvalidSample) -> None:
        """Raises DataError if too many of the `read` samples so far are bad."""
        seen = max(min(read, self._size), min(_AT_LEAST, self._size))
        bad = len(self._reasons)
        if bad > self._max_fraction * seen:
            reasons = listed(_counts(self._reasons))
            raise DataError(
                f"{bad} of {seen} {self._split} samples cannot be used: {reasons}; the "
                f"last: {last}. data.max_bad_fraction allows {self._max_fraction:.2%}"
                + (f"; each is named in {self._path}" if self._path else "")
            )

    def __len__(self) -> int:
        return len(self._named)


def listed(counts: Mapping[str, int]) -> str:
    """Reason -> samples in words: "2 missing, 1 damaged"."""
    return ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "none"


def _counts(reasons: Mapping) -> dict[str, int]:
    return dict(collections.Counter(reasons.values()).most_common())


def _printable(text: str) -> str:
    """The text with halves of characters as "\\ud800", which no file can have."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _lines(path: Path) -> list[dict]:
    """What `add` has written, without a line that a kill cut short, or any other."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text("utf-8", "replace").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and all(
            isinstance(value.get(key), kind) for key, kind in _KEYS.items()
        ):
            lines.append(value)
    return lines
