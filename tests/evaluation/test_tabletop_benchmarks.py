"""Benchmarks that the built-in dataset writes, read back and scored."""

import itertools
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_sets import COUNT, SEED, needs_pyarrow

from hive_jax.data.tabletop.benchmarks import write_benchmarks
from hive_jax.data.tabletop.questions import CLAIMS, true_and_false
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import scene
from hive_jax.data.transforms import decode
from hive_jax.errors import ConfigError, DataError, OutputError
from hive_jax.evaluation.benchmarks.registry import TASKS, read_task
from tools.tabletop import main

FOUR = ("gqa", "mme", "okvqa", "scienceqa")


def most_said(example) -> str:
    return max(example.answers, key=example.answers.count)


def words(examples) -> list:
    """What does not depend on the form of the files."""
    return [(e.question, e.answers, e.choices, e.hint, e.group) for e in examples]


def test_mme_images_have_any_suffix(official, tmp_path):
    shutil.copytree(official / "mme", tmp_path / "mme")
    images = sorted((tmp_path / "mme").glob("*/*.jpg"))
    for path, suffix in zip(
        images, itertools.cycle((".JPG", ".jfif", "")), strict=False
    ):
        path.rename(path.with_suffix(suffix))
    examples = read_task("mme", str(tmp_path))
    assert {bool(examples.image(example)) for example in examples} == {True}
    assert {Path(e.image).suffix for e in examples} >= {".JPG", ".jfif", ""}


@pytest.mark.parametrize("name", FOUR)
def test_right_answers_score_in_full_and_others_do_not(official, name):
    examples = read_task(name, str(official))
    assert len(examples) == COUNT * (2 if name == "mme" else 1)
    right = [most_said(example) for example in examples]
    scores = TASKS[name].score(examples, right)
    full = {key: 100 for key in scores.totals}
    if name == "mme":
        full = {"perception": 1000, "cognition": 400}
        assert set(scores.parts) == set(CLAIMS)
    assert scores.totals == full
    assert set(scores.correct) == {1}
    assert sum(part["n"] for part in scores.parts.values()) in (
        len(examples),
        3 * len(examples),
    )
    random.Random(0).shuffle(right)
    totals = TASKS[name].score(examples, right).totals
    assert all(totals[key] < 0.9 * full[key] for key in full)


@needs_pyarrow
@pytest.mark.parametrize("name", FOUR)
def test_parquet_is_the_same_benchmark(official, parquet, name):
    first, second = (read_task(name, str(folder)) for folder in (official, parquet))
    assert words(first) == words(second)
    for one, other in zip(first, second, strict=True):
        assert first.image(one) == second.image(other)
    if name != "scienceqa":  # which has no ids there
        assert [e.id for e in first] == [e.id for e in second]


def test_images_are_those_of_the_scenes(official):
    examples = read_task("scienceqa", str(official))
    assert [example.image is None for example in examples[:4]] == [0, 1, 0, 1]
    for example in examples:
        if example.image is None:
            assert examples.image(example) is None and example.hint
            assert example.choices["ABCD".index(example.answers[0])] in example.hint
        else:
            pixels = decode(examples.image(example), 64, "hf_bicubic", "here")
            wanted = render(scene("test", SEED, int(example.id)), 64)
            np.testing.assert_array_equal(pixels, wanted)
    examples = read_task("gqa", str(official))
    for example in examples:
        pixels = decode(examples.image(example), 64, "hf_bicubic", "here")
        index = int(example.id)
        wanted = render(scene("test", SEED, index), 64).astype(int)
        assert np.abs(pixels - wanted).mean() < 3


def test_claims_are_true_and_false():
    """As counted, and measured, on the scenes themselves."""
    sizes = {"large": 1, "small": 0}
    numbers = {"zero": 0, "one": 1, "two": 2, "three": 3}
    seen = set()
    for index in range(300):
        one = scene("test", 0, index)
        for category, rest in (("count", 0), ("numerical_calculation", 1)):
            asked = true_and_false(one, category, one.stream(3))
            said = [
                number
                for question in asked
                for word, number in numbers.items()
                if word
                in question.lower().removesuffix(" if one is taken away?").split()
            ]
            assert (said[0] == len(one.things) - rest) and said[1] != said[0]
            assert all(("objects" in q) != ("one object" in q) for q in asked)
        asked = true_and_false(one, "commonsense_reasoning", one.stream(3))
        if asked is None:
            continue
        for question, wanted in zip(asked, (True, False), strict=True):
            names = question.removeprefix("Is the ").removesuffix("?")
            toys = [
                [
                    thing
                    for thing in one.things
                    if set(name.split()) - {"object"}
                    <= {thing.colour, thing.shape, thing.material}
                ]
                for name in names.split(" larger than the ")
            ]
            assert [len(found) for found in toys] == [1, 1], question
            first, second = (sizes[found[0].size] for found in toys)
            assert (first > second) == wanted and first != second
            seen.add(wanted)
    assert seen == {True, False}


def test_the_same_arguments_write_the_same_files(official, tmp_path, capsys):
    again = tmp_path / "again"
    options = ("--count", str(COUNT), "--seed", str(SEED))
    assert main(["benchmarks", "--out", str(again), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in printed] == [
        f"{COUNT} questions, {COUNT} images",
        f"{2 * COUNT} questions, {COUNT} images",
        f"{COUNT} questions, {COUNT} images",
        f"{COUNT} questions, {COUNT // 2} images",
    ]
    files = [path.relative_to(again) for path in again.glob("**/*") if path.is_file()]
    assert len(files) > 60
    for path in files:
        assert (again / path).read_bytes() == (official / path).read_bytes()
    fingerprints = [read_task("gqa", str(f)).fingerprint for f in (official, again)]
    assert fingerprints[0] == fingerprints[1]
    assert main(["benchmarks", "--out", str(again), *options]) == 73
    assert "choose another folder" in capsys.readouterr().err
    with pytest.raises(OutputError, match="cannot write"):
        write_benchmarks("/dev/null/x", 1, 0)
    with pytest.raises(ConfigError, match="count is 0"):
        write_benchmarks(str(tmp_path / "none"), 0, 0)


@pytest.mark.parametrize(
    ("name", "folder"), [("gqa", "images"), ("okvqa", "val2014"), ("scienceqa", "test")]
)
def test_images_may_be_in_a_zip(official, copy, name, folder):
    root = copy / name
    above = root / "images" if name == "scienceqa" else root
    with zipfile.ZipFile(root / f"{folder}.zip", "w") as out:
        for path in (above / folder).glob("**/*.*"):
            out.write(path, path.relative_to(above))
    shutil.rmtree(root / folder if above == root else above)
    first, second = (read_task(name, str(where)) for where in (official, copy))
    assert list(first) == list(second)
    assert [*map(first.image, first)] == [*map(second.image, second)]


def test_pope_and_textvqa(official, tmp_path):
    image = next((official / "gqa/images").iterdir()).read_bytes()
    pope, textvqa = tmp_path / "pope", tmp_path / "textvqa"
    (pope / "val2014").mkdir(parents=True)
    (pope / "val2014/a.jpg").write_bytes(image)
    line = {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}
    lines = [line, line | {"question_id": 2, "label": "no"}]
    for kind in ("random", "adversarial"):
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (pope / f"coco_pope_{kind}.json").write_text(text)
    examples = read_task("pope", str(tmp_path))
    assert [(e.id, e.answers) for e in examples] == [
        *(("random 1", ("yes",)), ("random 2", ("no",))),
        *(("adversarial 1", ("yes",)), ("adversarial 2", ("no",))),
    ]
    assert examples.image(examples[0]) == image
    (textvqa / "train_images").mkdir(parents=True)
    (textvqa / "train_images/0a.jpg").write_bytes(image)
    record = {"question_id": 7, "image_id": "0a", "question": "what Brand?"}
    record["answers"] = ["x"] * 10
    path = textvqa / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"data": [record]}))
    (example,) = read_task("textvqa", str(tmp_path))
    assert (example.id, example.question) == ("7", "What brand?")
    (pope / "coco_pope_random.json").write_text('{"question_id": 1, "image": "a.jpg"}')
    with pytest.raises(DataError, match="line 1 has no 'label'"):
        read_task("pope", str(tmp_path))
    path.write_text(json.dumps({"data": [record | {"answers": ["x"] * 9}]}))
    with pytest.raises(DataError, match="has 9 answers"):
        read_task("textvqa", str(tmp_path))
