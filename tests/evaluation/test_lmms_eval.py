"""Scorers and the documented command against lmms-eval itself, where it is installed."""

import importlib
import json
import os
import random
import re
import shlex
import string
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers.benchmark_sets import as_hub_repositories
from helpers.random_runs import save_talking

from hive_jax.data.tabletop.benchmarks import write_benchmarks
from hive_jax.evaluation import runner
from hive_jax.evaluation.benchmarks.base import Example, format_prompt
from hive_jax.evaluation.benchmarks.mme import COGNITION, PERCEPTION
from hive_jax.evaluation.benchmarks.registry import TASKS

pytest.importorskip("lmms_eval", reason="needs pip install 'hive_jax[eval]'")

COUNT = 20_000  # random answers for each scorer
WORDS = (
    *("yes", "no", "Yes", "NO", "y", "N", "not", "nope", "none", "unanswerable"),
    *("a", "an", "the", "The", "A", "B", "c", "D.", "(A)", "B)", "b. cat"),
    *("zero", "One", "two", "ten", "0", "3.5", "1,000", "10", "dont", "dont've"),
    *("isn't", "itll", "she'd've", "oclock", "ow's'at", "somebodyd", "it's"),
    *(
        "cat",
        "Cats",
        "t-shirt",
        "tshirt",
        "red/blue",
        "left",
        "U.S.A.",
        "\u0130stanbul",
    ),
    *("caf\u00e9", "\u732b", "\U0001f408", "\u00df", "ma'am"),
)
SEPARATORS = (" ", " ", " ", "  ", ", ", ". ", "-", " - ", "\n", "\t", "/", "; ", "? ")


def theirs(task):
    return importlib.import_module(f"lmms_eval.tasks.{task}.utils")


def texts(seed, *likely, count=COUNT):
    """Random answers: words, punctuation, and often one of `likely`, changed a little."""
    rng = random.Random(seed)

    def one():
        if rng.random() < 0.4 and likely:
            text = rng.choice(likely)
        else:
            text = rng.choice(WORDS)
            for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
                text += rng.choice(SEPARATORS) + rng.choice(WORDS)
        change = rng.randrange(8)
        if change == 0:
            text = rng.choice(string.punctuation) + text
        elif change == 1:
            text += rng.choice((*string.punctuation, "...", "\n", " ", ".\n"))
        elif change == 2:
            text = rng.choice((text.upper(), text.title(), text.lower(), ""))
        elif change == 3:
            text = "".join(rng.sample(string.printable, rng.randrange(6)))
        return text

    return [one() for _ in range(count)]


def test_gqa_scores_are_equal():
    metric = importlib.import_module("lmms_eval.api.metrics").exact_match_hf_evaluate
    answers = [text for text in texts(0, count=2 * COUNT) if text.strip()][:COUNT]
    predictions = [
        answer if i % 3 == 0 else text
        for i, (answer, text) in enumerate(zip(answers, texts(1), strict=True))
    ]
    examples = [Example("1", "?", (answer,)) for answer in answers]
    ours = TASKS["gqa"].score(examples, predictions)
    for answer, prediction, score in zip(
        answers, predictions, ours.correct, strict=True
    ):
        # Its tasks strip the prediction before the metric, and not the answer.
        result = metric(
            [prediction.strip()], [answer], ignore_case=True, ignore_punctuation=True
        )
        assert score == result["exact_match"], (answer, prediction)


@pytest.mark.parametrize("task", ["okvqa", "textvqa"])
def test_vqa_scores_are_equal(task):
    name = {"okvqa": "ok_vqa"}.get(task, task)
    process = getattr(theirs(name), f"{name}_process_results")
    rng = random.Random(2)
    pool = [text for text in texts(3) if text.strip()]
    for prediction in texts(4):
        few = [prediction or "cat", *rng.sample(pool, 3)]
        answers = tuple(rng.choice(few) for _ in range(10))
        document = {"question_id": 1, "answers": list(answers)}
        result = process(document, [prediction])
        ours = TASKS[task].score([Example("1", "?", answers)], [prediction])
        assert ours.correct[0] == pytest.approx(result["exact_match"], abs=1e-15)
        said = result["submission"]["answer"]
        assert ours.parsed[0] == said, (prediction, answers)


def test_scienceqa_scores_are_equal():
    process, rng = theirs("scienceqa").sqa_process_results, random.Random(5)
    for prediction in texts(6, "A", "b", "C.", "D. cat", " B "):
        answer, choices = rng.randrange(4), ("cat", "dog", "owl", "hen")
        result = process({"answer": answer, "choices": choices}, [prediction])
        example = Example("1", "?", ("ABCD"[answer],), choices=choices)
        ours = TASKS["scienceqa"].score([example], [prediction])
        assert ours.correct[0] == result["exact_match"], (prediction, answer)


def documents(seed, per_set, *likely):
    """Sets of (answer, prediction, category, image), two questions an image."""
    rng = random.Random(seed)
    predictions = texts(seed + 1, *likely)
    for start in range(0, COUNT, per_set):
        chunk = predictions[start : start + per_set]
        yield [
            (
                rng.choice(("Yes", "No")),
                prediction,
                rng.choice(PERCEPTION + COGNITION) if i % 2 == 0 else None,
                f"{start}/{i // 2}.jpg",
            )
            for i, prediction in enumerate(chunk)
        ]


def test_mme_scores_are_equal():
    module = theirs("mme")
    for group in documents(7, 66, "Yes", "no.", "yes, it is", "n"):
        category, examples, results = "", [], {}
        predictions = [prediction for _, prediction, _, _ in group]
        for i, (answer, prediction, new, image) in enumerate(group):
            category = new or category
            examples.append(
                Example(str(i), "?", (answer.lower(),), group=image, kinds=(category,))
            )
            document = {"answer": answer, "category": category, "question_id": image}
            for key, value in module.mme_process_results(
                document, [prediction]
            ).items():
                results.setdefault(key, []).append(value)
        ours = TASKS["mme"].score(examples, predictions)
        expected = {
            key.removeprefix("mme_").removesuffix("_score"): (
                module.mme_aggregate_results(values)
            )
            for key, values in results.items()
        }
        assert ours.totals == pytest.approx(expected, abs=1e-9)
        each = [value["score"] for values in results.values() for value in values]
        assert sum(ours.correct) == sum(each)
        assert ours.counts == {
            key.removeprefix("mme_").removesuffix("_score"): len(values)
            for key, values in results.items()
        }


def test_pope_scores_are_equal():
    module = theirs("pope")
    names = {
        "accuracy": "accuracy",
        "precision": "precision",
        "recall": "recall",
        "f1": "f1_score",
        "yes_ratio": "yes_ratio",
    }
    for group in documents(9, 66, "yes", "no", " Yes", "NO\n"):
        examples = [Example("1", "?", (answer.lower(),)) for answer, *_ in group]
        predictions = [prediction for _, prediction, _, _ in group]
        ours = TASKS["pope"].score(examples, predictions)
        results = [
            module.pope_process_results(
                {"question_id": 1, "answer": answer}, [prediction]
            )
            for answer, prediction, _, _ in group
        ]
        for name, key in names.items():
            aggregate = getattr(module, f"pope_aggregate_{key}")
            values = [result[f"pope_{key}"] for result in results]
            assert ours.totals[name] == pytest.approx(100 * aggregate(values))


def documented_commands():
    """The export and the evaluation of docs/evaluation.md, as they are written there."""
    page = (ROOT / "docs/evaluation.md").read_text("utf-8")
    section = page.partition("## Use lmms-eval")[2].partition("\n## ")[0]
    lines = re.findall(r"^python .*$", section, re.MULTILINE)
    export, evaluation = (shlex.split(line) for line in lines)
    return [sys.executable, *export[1:]], [sys.executable, *evaluation[1:]]


def test_the_documented_command_gives_the_answers_of_evaluate(tmp_path):
    """On local task files in the layout of its repositories, without a network."""
    import torch

    source = tmp_path / "benchmarks"
    write_benchmarks(str(source), 6, 0)
    as_hub_repositories(source, tmp_path / "lmms-lab-encoder")
    save_talking(str(tmp_path / "workdir/vlm2"), "self_attention")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    export, evaluation = documented_commands()
    if not torch.cuda.is_available():
        evaluation += ["--device", "cpu"]
    evaluation += ["--log_samples", "--output_path", "logs"]
    for command in (export, evaluation):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    (results,) = (tmp_path / "logs").glob("*/*_results.json")
    scores = json.loads(results.read_text())["results"]
    names = {
        "mme": "mme",
        "gqa": "gqa",
        "okvqa": "ok_vqa_val2014",
        "scienceqa": "scienceqa_img",
    }
    assert scores.keys() == set(names.values())
    ours = runner.evaluate(
        str(tmp_path / "workdir/vlm2"),
        list(names),
        str(source),
        str(tmp_path / "ours"),
        prompt_variant="lmms_eval",
    )
    assert scores["mme"]["mme_perception_score,none"] == pytest.approx(
        ours["mme"]["scores"]["perception"]
    )
    assert 100 * scores["gqa"]["exact_match,none"] == pytest.approx(
        ours["gqa"]["scores"]["exact_match"]
    )
    for task, name in names.items():
        (logged,) = (tmp_path / "logs").glob(f"*/*_samples_{name}.jsonl")
        samples = map(json.loads, logged.read_text().splitlines())
        said = {one["doc_id"]: (one["input"], one["filtered_resps"]) for one in samples}
        lines = (tmp_path / f"ours/{task}/samples.jsonl").read_text().splitlines()
        examples = TASKS[task].read(f"{source}/{task}")
        prompt = TASKS[task].prompts["lmms_eval"]
        expected = [
            (format_prompt(prompt, example), json.loads(line)["output"])
            for example, line in zip(examples, lines, strict=True)
            if example.image is not None
        ]
        assert [said[i] for i in range(len(said))] == expected
