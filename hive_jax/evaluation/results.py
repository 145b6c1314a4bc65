"""Resumable on-disk record of one evaluation: settings, answers, scores.

OUT/answers.jsonl    during evaluation: the settings, then one answer per line
OUT/samples.jsonl    at the end: question, answer and score, one example per line
OUT/result.json      settings and scores
"""

import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

import hive_jax
from hive_jax.config import differences
from hive_jax.errors import DataError, OutputError
from hive_jax.io import (
    output_errors,
    read_json,
    require_regular,
    write_json,
    write_text,
)
from hive_jax.json_text import json_lines, parse_json
from hive_jax.locks import exclusive_lock
from hive_jax.log_file import LogFile, logs_flushed

RESULT, SAMPLES = "result.json", "samples.jsonl"
_ANSWERS = "answers.jsonl"
# Keys of a result that are outcomes; all others are settings.
_OUTCOMES = ("scores", "counts", "parts", "version", "date")


class ResultStore:
    """Answers and result of one evaluation, written to disk at once; see `open_store`.

    Attributes:
      folder: folder of this evaluation only.
      answers: id -> record of each answer so far under the same settings.
      result: content of result.json once finished, else None.
    """

    def __init__(self, folder, settings: Mapping):
        # Through JSON, as the stored settings were: tuples become lists.
        self.folder, self._settings = folder, json.loads(json.dumps(settings))
        self.answers: dict[str, dict] = {}
        path = folder / RESULT
        self.result = read_json(path) if path.is_file() else None
        if self.result is not None:
            # The stored result may be of other settings.
            settings = {k: v for k, v in self.result.items() if k not in _OUTCOMES}
            self._require_same(settings)
        else:
            self._read()

    def add(self, records: Iterable[Mapping]) -> None:
        """Appends records, each with an "id", to the stored answers.

        Raises:
          OutputError: the file cannot be written.
        """
        records = list(records)
        self.answers |= {record["id"]: record for record in records}
        # Durable: a preempted machine loses no answer.
        self._file.append(json_lines(records).encode(), durable=True)

    def finish(
        self,
        samples: Iterable[Mapping],
        scores: Mapping,
        by_category: Mapping,
        counts: Mapping | None = None,
    ) -> dict:
        """Writes samples.jsonl and, last, result.json; returns the result.

        Args:
          samples: one record for each example.
          scores: score name -> score.
          by_category: category -> score name -> score.
          counts: score name -> number of examples; by default of all examples.

        Raises:
          OutputError: a file cannot be written.
        """
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        counts = counts or dict.fromkeys(scores, self._settings["n"])
        outcomes = (scores, counts, by_category, hive_jax.__version__, date)
        self.result = self._settings | dict(zip(_OUTCOMES, outcomes, strict=True))
        # result.json comes last: where it exists, the evaluation is complete.
        write_text(self.folder / SAMPLES, json_lines(samples))
        write_json(self.folder / RESULT, self.result)
        (self.folder / _ANSWERS).unlink(missing_ok=True)
        return self.result

    def _read(self) -> None:
        """Reads the answers of an interrupted evaluation; drops a torn last line."""
        path, lines = self.folder / _ANSWERS, []
        if path.exists():
            require_regular(path, error=OutputError)
            with output_errors(path):
                content = path.read_bytes().decode("utf-8", "replace")
            # What a kill cut short, and anything after it, is answered again.
            with contextlib.suppress(DataError):
                for line in content.splitlines():
                    lines.append(parse_json(line, str(path), dict))
        settings, *answers = lines or [self._settings]
        self._require_same(settings)
        answers = [answer for answer in answers if isinstance(answer.get("id"), str)]
        self.answers = {answer["id"]: answer for answer in answers}
        # Without the torn line, which the next answer would be appended to.
        self._file = LogFile(path)
        self._file.replace(json_lines((settings, *answers)).encode())

    def _require_same(self, stored: Mapping) -> None:
        if changed := differences(stored, self._settings):
            listed = "\n  ".join(changed)
            raise OutputError(
                f"{self.folder} has an evaluation with other settings (there -> now):\n"
                f"  {listed}\nChoose another folder, or remove that one"
            )


@contextlib.contextmanager
def open_store(folder, settings: Mapping) -> Iterator[ResultStore]:
    """Opens the folder of an evaluation, locked for this process.

    Args:
      folder: path of the folder to write; made if it does not exist.
      settings: everything the answers depend on, as JSON values.

    Raises:
      OutputError: the folder has an evaluation of other settings, each of which is
        named; another process is writing it; or it cannot be written.
    """
    with exclusive_lock(folder), logs_flushed():
        yield ResultStore(folder, settings)


def accuracy_by_class(
    hits: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Computes the accuracy of each class that occurs, for `ResultStore.finish`.

    Args:
      hits: bool[..., n], which examples are classified correctly.
      labels: int[n], indices into `classes`.
      classes: names of the classes.

    Returns:
      Class -> {"accuracy": in percent, "n": number of examples}.
    """
    return {
        classes[number]: {
            "accuracy": float(100 * hits[..., labels == number].mean()),
            "n": int((labels == number).sum()),
        }
        for number in np.unique(labels)
    }
