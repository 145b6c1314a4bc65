"""Benchmarks from their files to scores, and what is kept on the way."""

import json
import shutil

import pytest
from helpers.exported_runs import run_config
from helpers.random_runs import save_random, save_talking

from hive_jax import chat, evaluate
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.tabletop.benchmarks import write_benchmarks
from hive_jax.errors import HiveError
from hive_jax.evaluation import runner
from hive_jax.evaluation.benchmarks.registry import TASKS
from hive_jax.inference.generate import Generator
from hive_jax.inference.model import TrainedModel

FOUR = ("gqa", "mme", "okvqa", "scienceqa")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(str(folder), 14, 0)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("run") / "talking")
    save_talking(workdir, "hive")
    return workdir


@pytest.fixture(scope="module")
def evaluated(run, data, tmp_path_factory):
    """All four tasks, in the folder that is given back."""
    out = tmp_path_factory.mktemp("evaluated")
    runner.evaluate(run, FOUR, data, str(out), batch_size=8, max_new_tokens=8)
    return out


def result(folder):
    return json.loads((folder / "result.json").read_text())


def samples(folder):
    return [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]


def outputs(folder):
    return [sample["output"] for sample in samples(folder)]


def evaluate_gqa(run, data, out, **settings):
    settings = {"batch_size": 8, "max_new_tokens": 8} | settings
    return runner.evaluate(run, ["gqa"], data, str(out), **settings)["gqa"]


@pytest.mark.parametrize("task", FOUR)
def test_results_say_what_they_are_of(task, evaluated):
    found, said = result(evaluated / task), samples(evaluated / task)
    assert sorted(path.name for path in (evaluated / task).iterdir()) == [
        "result.json",
        "samples.jsonl",
    ]
    assert found["counts"].keys() == found["scores"].keys()
    assert found["n"] == len(said) == (28 if task == "mme" else 14)
    assert found["task"] == task and found["variant"] == "plain"
    assert found["prompt"] == TASKS[task].prompts["plain"]
    assert found["decoding"]["max_new_tokens"] == 8
    assert found["preprocessing"] == "hf_bicubic" and found["image_size"] == 64
    assert found["checkpoint"]["step"] == 7
    assert found["checkpoint"]["run"] == "talking_hive"
    assert found["scores"] and found["version"] and found["date"]


@pytest.mark.parametrize("task", FOUR)
def test_scores_are_those_of_the_samples(task, evaluated, data):
    examples = TASKS[task].read(f"{data}/{task}")
    scores = TASKS[task].score(examples, outputs(evaluated / task))
    assert result(evaluated / task)["scores"] == scores.totals
    assert [one["score"] for one in samples(evaluated / task)] == list(scores.correct)
    assert [one["id"] for one in samples(evaluated / task)] == [e.id for e in examples]


def test_each_score_has_the_number_of_its_questions(evaluated, data):
    examples = TASKS["scienceqa"].read(f"{data}/scienceqa")
    pictured = sum(example.image is not None for example in examples)
    found = result(evaluated / "scienceqa")
    assert 0 < pictured < 14
    assert found["counts"] == {"full": 14, "image_only": pictured}
    rows = [line.split() for line in runner.table({"sqa": found}).splitlines()[2:]]
    assert [row[-1] for row in rows] == ["14", str(pictured)]


def test_the_model_says_different_things(evaluated):
    assert len({output for task in FOUR for output in outputs(evaluated / task)}) >= 5


# Of 14 questions: each alone, and all in one batch; `evaluated` has batches of 8, and
# test_an_evaluation_that_was_cut_goes_on of 4.
@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_batch_size_changes_no_answer(batch_size, run, data, evaluated, tmp_path):
    evaluate_gqa(run, data, tmp_path, batch_size=batch_size)
    assert samples(tmp_path / "gqa") == samples(evaluated / "gqa")


def test_an_evaluation_that_was_cut_goes_on(
    run, data, evaluated, tmp_path, monkeypatch
):
    asked = []

    def until_the_second(self, prompts, batch_size):
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(self, prompts, batch_size)

    original = Generator.__call__
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Generator, "__call__", until_the_second)
        evaluate_gqa(run, data, tmp_path, batch_size=4)
    answers = tmp_path / "gqa/answers.jsonl"
    lines = answers.read_text().splitlines()
    assert len(lines) == 1 + asked[0]
    answers.write_text("\n".join(lines) + '\n{"id": "0000')  # cut in a line
    counted = []

    def counting(self, prompts, batch_size):
        counted.append(len(prompts))
        return original(self, prompts, batch_size)

    monkeypatch.setattr(Generator, "__call__", counting)
    evaluate_gqa(run, data, tmp_path, batch_size=4)
    assert sum(counted) == 14 - asked[0]
    assert samples(tmp_path / "gqa") == samples(evaluated / "gqa")
    assert not answers.exists()


def test_a_finished_evaluation_is_not_done_again(run, data, evaluated, monkeypatch):
    monkeypatch.delattr(TrainedModel, "generator")
    again = runner.evaluate(
        run, FOUR, data, str(evaluated), batch_size=5, max_new_tokens=8
    )
    assert again == {task: result(evaluated / task) for task in FOUR}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_new_tokens": 9}, "decoding.max_new_tokens: 8 -> 9"),
        ({"prompt_variant": "lmms_eval"}, "variant: plain -> lmms_eval"),
        ({"seed": 4}, "decoding.seed: 0 -> 4"),
    ],
)
def test_other_settings_are_another_evaluation(settings, line, run, data, evaluated):
    with pytest.raises(HiveError, match=f"(?s)other settings.*{line}.*another folder"):
        evaluate_gqa(run, data, evaluated, **settings)


def test_the_prompt_goes_with_the_data(data, tmp_path):
    save_talking(str(tmp_path / "llava"), "none", source="llava:chat.json")
    evaluate_gqa(str(tmp_path / "llava"), data, tmp_path)
    assert result(tmp_path / "gqa")["variant"] == "lmms_eval"
    assert samples(tmp_path / "gqa")[0]["prompt"].endswith("a single word or phrase.")


@pytest.mark.parametrize("fusion", ["cascaded", "self_attention"])
def test_the_baselines_answer(fusion, data, tmp_path):
    save_talking(str(tmp_path / "run"), fusion)
    evaluate_gqa(str(tmp_path / "run"), data, tmp_path)
    assert len(set(outputs(tmp_path / "gqa"))) >= 2


def test_a_damaged_image_is_an_error_and_no_score(run, data, tmp_path):
    shutil.copytree(f"{data}/gqa", tmp_path / "data/gqa")
    image = next((tmp_path / "data/gqa/images").iterdir())
    image.write_bytes(b"nothing")
    with pytest.raises(InvalidSample, match=f"{image.name}.*begins with b'nothing'"):
        evaluate_gqa(run, str(tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out/gqa/result.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["gqa", "mmee"]}, "'mmee'; expected one of .*did you mean 'mme'"),
        ({"tasks": ["pope"]}, "pope: no such folder; expected the files of pope"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            {"prompt_variant": "lmmseval"},
            "prompt_variant is 'lmmseval'.*did you mean 'lmms_eval'",
        ),
        ({"run": "nowhere"}, "no checkpoint in nowhere"),
    ],
)
def test_what_cannot_be_evaluated(settings, message, run, data, tmp_path):
    arguments = {"run": run, "tasks": ["gqa"], "data": data, "out": str(tmp_path)}
    with pytest.raises(HiveError, match=message):
        runner.evaluate(**(arguments | settings))
    assert not list(tmp_path.iterdir())


def test_towers_do_not_answer(data, tmp_path):
    save_random(run_config("contrastive"), str(tmp_path / "towers"))
    with pytest.raises(HiveError, match="and no decoder; expected a run"):
        evaluate_gqa(str(tmp_path / "towers"), data, tmp_path / "out")


def test_the_command(run, data, tmp_path, capsys):
    line = f"--run {run} --task gqa,scienceqa --data {data} --out {tmp_path}"
    line += " --batch_size 8 --max_new_tokens 8"
    assert evaluate.main(line.split()) == 0
    shown = capsys.readouterr().out
    wanted = result(tmp_path / "scienceqa")["scores"]["image_only"]
    (row,) = [x for x in shown.splitlines() if x.startswith("scienceqa image_only")]
    assert row.split()[2:] == [f"{wanted:.2f}", "7"]
    assert evaluate.main([*line.split(), "--seed", "1"]) == 73
    assert "decoding.seed: 0 -> 1" in capsys.readouterr().err


def test_chat(run, data, capsys):
    image = f"{data}/gqa/images/" + "n1.jpg"
    line = [image, "What colour is the star?", "How many objects are there?"]
    assert chat.main([*line, "--run", run, "--max_new_tokens", "8"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert chat.main([image, "--run", run, "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()
    assert chat.main(["nothing.jpg", "--run", run]) == 66
    assert "nothing.jpg: no such file" in capsys.readouterr().err


def test_all_tasks_of_a_folder_without_any(tmp_path, capsys):
    for data, code, message in (
        (
            str(tmp_path),
            66,
            f"{tmp_path} has no folder of a task; expected one or more",
        ),
        ("hdfs://host", 64, "expected a local path"),
    ):
        assert evaluate.main(["--run=run", "--task=all", f"--data={data}"]) == code
        assert message in capsys.readouterr().err
