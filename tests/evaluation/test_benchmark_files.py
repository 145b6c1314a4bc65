"""Wrong benchmark files are named."""

import functools
import json
import shutil
from pathlib import Path

import pytest
from helpers.benchmark_sets import needs_pyarrow

from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.evaluation.benchmarks.registry import read_task

GQA = "gqa/testdev_balanced_questions.json"
OKVQA = "okvqa/mscoco_val2014_annotations.json"
ASKED = "okvqa/OpenEnded_mscoco_val2014_questions.json"
SCIENCE = "scienceqa/problems.json"


def first(path: str, *keys, **changes):
    """Changes to the first record of a JSON file; None removes a key."""

    def change(root: Path) -> None:
        whole = json.loads((root / path).read_text())
        record = functools.reduce(lambda inner, key: inner[key], keys, whole)
        record = record if keys else next(iter(record.values()))
        for key, value in changes.items():
            if value is None:
                del record[key]
            else:
                record[key] = value
        (root / path).write_text(json.dumps(whole))

    return change


def content(path: str, new: bytes):
    return lambda root: (root / path).write_bytes(new)


def without(path: str):
    """Without the first file that there is, by its name."""
    return lambda root: min(root.glob(path)).unlink()


TEN = [{"answer": "x"}] * 10
WRONG = {
    "gqa, image missing": (without("gqa/images/*"), "1 of 14 images are not in .* n"),
    "gqa, images missing": (
        lambda root: shutil.rmtree(root / "gqa/images"),
        "neither the folder images nor images.zip",
    ),
    "gqa, file missing": (without(GQA), "no such file"),
    "gqa, folder missing": (
        lambda root: shutil.rmtree(root / "gqa"),
        "no such folder; expected the files of gqa",
    ),
    "gqa, key": (first(GQA, answer=None), "question 00000000 has no 'answer'; it has"),
    "gqa, empty answer": (first(GQA, answer=" "), "answer is empty"),
    "gqa, kind": (first(GQA, question=5), "question is 5; expected text"),
    "gqa, half a character": (first(GQA, question="\ud800"), "expected text"),
    "gqa, out of the folder": (
        first(GQA, imageId="../../../x"),
        "1 of 14 images are not in",
    ),
    "gqa, list": (content(GQA, b"[]"), r"expected an object, got \[\]"),
    "gqa, nothing": (content(GQA, b"{}"), "has no questions"),
    "gqa, record": (content(GQA, b'{"1": null}'), "question 1 is None"),
    "gqa, no JSON": (content(GQA, b'{"1": {'), "is not JSON"),
    "gqa, not UTF-8": (content(GQA, b'{"\xff'), "is not UTF-8"),
    "gqa, deep": (content(GQA, b"[" * 200_000), "nested too deeply"),
    "okvqa, image missing": (without("okvqa/val2014/*"), "1 of 14 images are not in"),
    "okvqa, 9 answers": (
        first(OKVQA, "annotations", 0, answers=TEN[:9]),
        r"annotations\[0\] has 9 answers, 0 of them empty; expected 10",
    ),
    "okvqa, empty answer": (
        first(OKVQA, "annotations", 0, answers=[*TEN[:9], {"answer": ""}]),
        "has 10 answers, 1 of them empty",
    ),
    "okvqa, no answers": (
        first(OKVQA, "annotations", 0, answers=[]),
        "has 0 answers",
    ),
    "okvqa, answers as text": (
        first(OKVQA, "annotations", 0, answers=["x"] * 10),
        r"answers\[0\] is 'x'; expected an object",
    ),
    "okvqa, key": (
        first(OKVQA, "annotations", 0, answers=[{"raw_answer": "x"}] * 10),
        "has no 'answer'",
    ),
    "okvqa, not annotated": (
        first(OKVQA, "annotations", 0, question_id=-1),
        "has no answers to",
    ),
    "okvqa, one id twice": (
        first(ASKED, "questions", 1, question_id=5),
        "two questions with the id 5",
    ),
    "okvqa, id": (
        first(ASKED, "questions", 0, image_id=True),
        "image_id is True; expected a whole number",
    ),
    "scienceqa, out of range": (first(SCIENCE, answer=4), "out of range: .* 0 to 3"),
    "scienceqa, negative": (first(SCIENCE, answer=-1), "out of range"),
    "scienceqa, letter": (first(SCIENCE, answer="B"), "expected a whole number"),
    "scienceqa, one choice": (first(SCIENCE, choices=["x"]), "has 1 choices"),
    "scienceqa, no choices": (first(SCIENCE, choices=None), "has no 'choices'"),
    "scienceqa, image": (
        first(SCIENCE, image="../../x.png"),
        "1 of 7 images are not in",
    ),
    "scienceqa, split": (
        content("scienceqa/pid_splits.json", b'{"test": ["-1"]}'),
        "has no '-1'",
    ),
    "mme, image missing": (without("mme/color/*.jpg"), "2 of 28 images are not in"),
    "mme, no category": (
        lambda root: [shutil.rmtree(path) for path in (root / "mme").iterdir()],
        "expected Parquet, or folders named existence",
    ),
    "mme, answer": (
        content("mme/color/x.txt", b"Is it?\tYes\nIs it not?\tMaybe\n"),
        "x.txt, line 2: the answer is 'Maybe'",
    ),
    "mme, no tab": (content("mme/color/x.txt", b"Is it? Yes\n"), "a tab, Yes or No"),
    "mme, one question": (
        content("mme/color/x.txt", b"Is it?\tYes\n"),
        "color/x.jpg has 1 questions",
    ),
    "mme, not UTF-8": (content("mme/color/x.txt", b"\xff\tYes\n"), "is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named(copy, name):
    spoil, message = WRONG[name]
    spoil(copy)
    with pytest.raises((DataError, MissingInputError), match=message):
        read_task(name.split(",")[0], str(copy))


def test_blank_lines_between_the_questions_of_mme(copy):
    expected = read_task("mme", str(copy)).fingerprint
    for path in (copy / "mme").rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert read_task("mme", str(copy)).fingerprint == expected


@needs_pyarrow
def test_wrong_tables_are_named(parquet, tmp_path):
    import pyarrow.parquet

    def spoilt(name: str, change):
        target = tmp_path / name
        path = next((parquet / name).glob("**/test*.parquet"))
        table = change(pyarrow.parquet.read_table(path))
        target.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, target / "test-0.parquet")
        return read_task(name, str(tmp_path))

    def changed(key, value):
        def change(table):
            rows = table.to_pylist()
            rows[0][key] = value
            return pyarrow.Table.from_pylist(rows, table.schema)

        return change

    with pytest.raises(DataError, match="has the columns .* expected question_id as"):
        spoilt("mme", lambda table: table.drop_columns("question_id"))
    with pytest.raises(DataError, match="expected one with images"):
        spoilt("mme", lambda table: table.drop_columns("image"))
    with pytest.raises(DataError, match="category is 'colour'; expected one of"):
        spoilt("mme", changed("category", "colour"))
    with pytest.raises(MissingInputError, match="1 of 28 images are not in"):
        spoilt("mme", changed("image", None))
    with pytest.raises(DataError, match="row 0: answer is None; expected text"):
        spoilt("mme", changed("answer", None))
    with pytest.raises(DataError, match="answer is 9, out of range"):
        spoilt("scienceqa", changed("answer", 9))
    (tmp_path / "mme/test-0.parquet").rename(tmp_path / "mme/train-0.parquet")
    with pytest.raises(MissingInputError, match="split test.*found train-0.parquet"):
        read_task("mme", str(tmp_path))
    (tmp_path / "mme/test-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not Parquet"):
        read_task("mme", str(tmp_path))


def test_unknown_task():
    with pytest.raises(ConfigError, match="task is 'mne'; expected one of .*mme"):
        read_task("mne", ".")
