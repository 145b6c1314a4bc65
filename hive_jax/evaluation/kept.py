"""What an evaluation has so far and what came of it, in a folder of its own.

OUT/answers.jsonl    while it runs: its settings, then an answer a line
OUT/samples.jsonl    at the end: a question, its answer and its score a line
OUT/result.json      settings and scores
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import hive_jax
from hive_jax.config import differences
from hive_jax.errors import OutputError
from hive_jax.io import (
    exclusive_lock,
    json_lines,
    output_errors,
    read_json,
    write_json,
    write_text,
)

RESULT, SAMPLES = "result.json", "samples.jsonl"
_ANSWERS = "answers.jsonl"
# Of a result, what is no setting.
_FOUND = ("scores", "parts", "version", "date")


class Kept:
    """Answers that are on disk as soon as they are given; from `kept_in`.

    Attributes:
      folder: that they are in.
      answers: id -> record, of those given under the same settings, now or before.
      result: what came of the whole, where it is finished; else None.
    """

    def __init__(self, folder: Path, settings: Mapping):
        self.folder, self._settings = folder, json.loads(json.dumps(settings))
        self.answers: dict[str, dict] = {}
        path = folder / RESULT
        self.result = read_json(path) if path.is_file() else None
        if self.result is not None:
            settings = {k: v for k, v in self.result.items() if k not in _FOUND}
            self._require_same(settings)
        else:
            self._read()

    def add(self, records: Iterable[Mapping]) -> None:
        """Writes records with an "id" each. Raises OutputError."""
        records = list(records)
        self.answers |= {record["id"]: record for record in records}
        path = self.folder / _ANSWERS
        with output_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json_lines(records))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, samples: Iterable[Mapping], scores: dict, parts: dict) -> dict:
        """Writes samples.jsonl and, last, result.json; returns the result."""
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        found = (scores, parts, hive_jax.__version__, date)
        self.result = self._settings | dict(zip(_FOUND, found, strict=True))
        write_text(self.folder / SAMPLES, json_lines(samples))
        write_json(self.folder / RESULT, self.result)
        (self.folder / _ANSWERS).unlink(missing_ok=True)
        return self.result

    def _read(self) -> None:
        """The answers of an evaluation that was cut off; a torn last line is dropped."""
        path, lines = self.folder / _ANSWERS, []
        with output_errors(path):
            if path.exists():
                for line in path.read_bytes().splitlines():
                    try:
                        lines.append(json.loads(line))
                    except ValueError:
                        break
        settings, *answers = lines or [self._settings]
        self._require_same(settings)
        self.answers = {answer["id"]: answer for answer in answers}
        write_text(path, json_lines((settings, *answers)))

    def _require_same(self, theirs: Mapping) -> None:
        if changed := differences(theirs, self._settings):
            listed = "\n  ".join(changed)
            raise OutputError(
                f"{self.folder} has an evaluation with other settings (there -> now):\n"
                f"  {listed}\nChoose another --out, or remove that folder"
            )


@contextlib.contextmanager
def kept_in(folder: Path, settings: Mapping) -> Iterator[Kept]:
    """The folder of an evaluation, for this process alone.

    Args:
      settings: all that the answers depend on, as JSON has it.

    Raises:
      OutputError: the folder has an evaluation of other settings, each of which is
        named; another process is writing it; or it cannot be written.
    """
    with exclusive_lock(folder):
        yield Kept(folder, settings)
