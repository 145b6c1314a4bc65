"""Invalid samples: what is wrong with each, and how many there are.

An invalid sample keeps its place in its batch with a loss weight of 0, so the order of
the others is what it would be without it.
"""

import collections
import logging
import os
from collections.abc import Callable, Mapping

from hive_jax.console import printable
from hive_jax.errors import DataError, OutputError
from hive_jax.json_text import json_lines
from hive_jax.log_file import LogFile, read_records

_log = logging.getLogger(__name__)

# Smallest denominator of the fraction: one invalid sample among the first eight does
# not mean that an eighth of the dataset is invalid.
_MIN_SAMPLES = 1000
# Required keys of a line, with their types, when the file is read back.
_KEYS = {"split": str, "position": int, "index": int, "reason": str}


class InvalidSample(DataError):
    """One sample that cannot be trained on.

    Args:
      reason: a short name to count by, e.g. "missing" or "damaged".
      where: the file and record.
      detail: what is wrong with it.
    """

    def __init__(self, reason: str, where: str, detail: str):
        # In one line: names and texts of others go into messages and reports.
        where, detail = _one_line(where), _one_line(detail)
        super().__init__(f"{where}: {detail}")
        self.reason, self.where, self.detail = reason, where, detail


class InvalidSampleLog:
    """Counts the invalid samples of a split by reason, each of them once.

    Args:
      split: its name.
      size: its samples.
      max_fraction: share of them that a run may have.
      name: index -> a name of the sample; a mixture has some at several indices.
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
        self._file = None
        self._failed = False

    def keep_in(self, path: str | os.PathLike, position: int | None) -> None:
        """Appends invalid samples to a file from now on, a JSON object a line.

        Args:
          path: the file. Its lines of this split count, but those at `position` or
            later, left by a run that was killed after its last checkpoint, are removed.
          position: that the run continues at; None keeps all lines.

        Raises:
          OutputError: the file cannot be read or written.
        """
        kept = []
        for line in read_records(path, _is_line)[0]:
            if line["split"] != self._split:
                kept.append(line)
            elif position is None or line["position"] < position:
                kept.append(line)
                self.include({line["index"]: line["reason"]})
        self._file = LogFile(path)
        self._file.replace(json_lines(kept).encode())

    def add(self, position: int, index: int, invalid: InvalidSample) -> None:
        """Counts a sample.

        Args:
          position: of the run, at which it was read.
          index: of the sample.
          invalid: what is wrong with it.
        """
        if index in self._reasons:
            return
        is_known = self._name(index) in self._named
        self.include({index: invalid.reason})
        if self._file and not is_known:
            line = {
                "split": self._split,
                "position": position,
                "index": index,
                "reason": invalid.reason,
                "where": invalid.where,
                "detail": invalid.detail,
            }
            try:
                self._file.append(json_lines([line]).encode())
            except OutputError as error:  # a full disk does not end the training
                if not self._failed:
                    _log.warning("%s", error)
                self._failed = True

    def include(self, reasons: Mapping[int, str]) -> None:
        """Counts invalid samples of another process or of the file.

        Args:
          reasons: index -> reason.
        """
        for index, reason in reasons.items():
            # The file may be of another dataset, which had more samples.
            if 0 <= index < self._size:
                self._reasons[index] = reason
                self._named.setdefault(self._name(index), reason)

    @property
    def reasons(self) -> dict[int, str]:
        """Index -> reason of all invalid samples so far."""
        return dict(self._reasons)

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> number of samples, the most frequent first."""
        return _count(self._named)

    def check(self, read: int, last: InvalidSample) -> None:
        """Checks that the share of invalid samples is within `max_fraction`.

        Args:
          read: samples read so far.
          last: the latest invalid one, for the message.

        Raises:
          DataError: too many samples are invalid.
        """
        seen = max(min(read, self._size), min(_MIN_SAMPLES, self._size))
        invalid = len(self._reasons)
        if invalid > self._max_fraction * seen:
            reasons = format_counts(_count(self._reasons))
            raise DataError(
                f"{invalid} of {seen} {self._split} samples cannot be used: {reasons}; "
                f"the last: {last}. data.max_bad_fraction allows "
                f"{self._max_fraction:.2%}"
                + (f"; each is named in {self._file.path}" if self._file else "")
            )

    def __len__(self) -> int:
        return len(self._named)


def format_counts(counts: Mapping[str, int]) -> str:
    """Formats reason -> number as text: "2 missing, 1 damaged"."""
    return ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "none"


def _count(reasons: Mapping) -> dict[str, int]:
    return dict(collections.Counter(reasons.values()).most_common())


def _one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _is_line(value: dict) -> bool:
    """Returns whether `add` wrote this line."""
    return all(isinstance(value.get(key), kind) for key, kind in _KEYS.items())
