"""The record of an evaluation that a kill or a person has spoiled."""

import json
import os

import pytest

from hive_jax.errors import DataError, OutputError
from hive_jax.evaluation.results import open_store

SETTINGS = {"task": "gqa"}
GOOD = json.dumps(SETTINGS) + "\n" + json.dumps({"id": "1", "output": "yes"}) + "\n"


@pytest.mark.parametrize(
    "torn", ["", '{"id": "2', "5", "null", "[" * 10**5, "\udcff", '{"id": 5}', "{}"]
)
def test_answers_are_read_up_to_a_torn_line(tmp_path, torn):
    (tmp_path / "answers.jsonl").write_text(GOOD + torn, errors="surrogateescape")
    with open_store(tmp_path, SETTINGS) as store:
        assert list(store.answers) == ["1"]
        store.add([{"id": "2", "output": "no"}])
    with open_store(tmp_path, SETTINGS) as store:
        assert list(store.answers) == ["1", "2"]


def test_what_is_no_record_is_named(tmp_path):
    os.mkfifo(tmp_path / "answers.jsonl")
    with pytest.raises(OutputError, match="jsonl is a pipe"):
        open_store(tmp_path, SETTINGS).__enter__()
    (tmp_path / "result.json").write_text("[" * 10**5)
    with pytest.raises(DataError, match="result.json is nested too deeply"):
        open_store(tmp_path, SETTINGS).__enter__()
