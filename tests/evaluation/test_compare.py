"""Evaluations side by side: scores, intervals, tests, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from hive_jax.compare import main as compare_command
from hive_jax.console import parse_named_paths
from hive_jax.errors import ConfigError, DataError, HiveError
from hive_jax.evaluation import compare, tables
from hive_jax.evaluation.benchmarks.base import Example
from hive_jax.evaluation.benchmarks.mme import score as mme_score
from hive_jax.evaluation.paired_statistics import difference as difference_of
from hive_jax.evaluation.paired_statistics import interval, total
from hive_jax.evaluation.results import open_store

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"n": 40, "data": "d1", "variant": "tabletop", "prompt": "{question}"}


def save(folder, task, scores, kinds=None, groups=None, **changes):
    """An evaluation with these scores."""
    settings = {"task": task, **SETTINGS, **changes}
    samples = [
        {
            "id": str(i),
            "kinds": [kinds[i]] if kinds else [],
            "group": groups[i] if groups else "",
            "score": float(value),
        }
        for i, value in enumerate(scores)
    ]
    with open_store(folder / task, settings) as kept:
        kept.finish(samples, {"accuracy": 100 * float(np.mean(scores))}, {})
    return str(folder)


def scores_of(seed, share, count=40):
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def test_scores_and_counts(tmp_path):
    one, other = scores_of(0, 0.4), scores_of(1, 0.7)
    a = save(tmp_path / "a", "gqa", one)
    b = save(tmp_path / "b", "gqa", other)
    (row,) = compare.compare({"base": [a], "hive": [b]})
    assert row.title == "gqa"
    assert row.seeds == {"base": [100 * one.mean()], "hive": [100 * other.mean()]}
    found = row.differences["hive"]
    assert found.value == pytest.approx(100 * (other.mean() - one.mean()))
    assert found.wins == ((other > one).sum()) and found.losses == (other < one).sum()
    assert found.wins + found.losses + found.ties == 40
    assert found.low < found.value < found.high
    uneven = int(found.wins + found.losses)
    wanted = scipy.stats.binomtest(int(found.wins), uneven).pvalue
    assert found.p == pytest.approx(wanted)


def test_mcnemar_by_hand():
    """Of ten questions that one alone has right, nine: twice (1 + 10) / 2 ** 10."""
    one, other = np.zeros((1, 30)), np.zeros((1, 30))
    other[0, :9] = one[0, 9] = 1
    found = difference_of({"all": one}, {"all": other}, (one, other))
    assert (found.wins, found.losses, found.ties) == (9, 1, 20)
    assert found.p == pytest.approx(2 * 11 / 1024)


def test_several_seeds():
    """Counts agree with the difference; p is about that of a test of the mean."""
    rng = np.random.default_rng(0)
    one = (
        np.repeat(rng.random((1, 400)) < 0.3, 3, axis=0) * 1.0
    )  # of one seed, in effect
    other = (rng.random((3, 400)) < 0.33) * 1.0
    strata = {"all": one}, {"all": other}
    found = difference_of(*strata, (one, other))
    assert (found.wins - found.losses) / 400 == pytest.approx(found.value)
    assert found.wins + found.losses + found.ties == pytest.approx(400)
    wanted = scipy.stats.ttest_1samp((other - one).mean(axis=0), 0).pvalue
    assert found.p == pytest.approx(wanted, rel=0.4)  # 3 sigma of the draws
    assert difference_of(*strata, (one, other)).p == found.p
    assert difference_of(strata[0], {"all": 1 - one}, (one, 1 - one)).p < 1e-6


def test_equals_are_not_different():
    same = np.ones((2, 10))
    found = difference_of({"all": same}, {"all": same}, (same, same))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_intervals_are_as_wide_as_they_should_be():
    """Of independent answers, 1.96 standard errors of the difference of two means."""
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 1, 4000)) < np.array([0.3, 0.5])[:, None, None]
    low, high = interval({"all": one * 1.0}, {"all": other * 1.0})
    error = np.sqrt((0.3 * 0.7 + 0.5 * 0.5) / 4000)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert low < 0.2 < high


def test_pairing_narrows_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random((1, 1000))
    low, high = interval({"all": hard}, {"all": hard + 0.01})
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)


def test_seeds_widen_intervals():
    answers = np.full((1, 500), 0.5)
    one = np.concatenate([answers - 0.1, answers + 0.1])
    low, high = interval({"all": one}, {"all": answers})
    assert low == pytest.approx(-0.1) and high == pytest.approx(0.1)


def test_intervals_do_not_change():
    one, other = np.random.default_rng(0).random((2, 1, 50))
    pair = {"all": one}, {"all": other}
    assert interval(*pair) == interval(*pair)


def test_mme_is_scored_as_by_its_own_code(tmp_path):
    categories = ["existence"] * 8 + ["color"] * 12 + ["code_reasoning"] * 4
    groups = [f"{c}/{i // 2}" for i, c in enumerate(categories)]
    runs, wanted = {}, {}
    for name, seed in (("base", 0), ("hive", 1)):
        said = ["yes" if x else "no" for x in scores_of(seed, 0.6, 24)]
        examples = [
            Example(str(i), "?", ("yes",), "a.jpg", group=g, kinds=(c,))
            for i, (c, g) in enumerate(zip(categories, groups, strict=True))
        ]
        scores = mme_score(examples, said)
        wanted[name] = scores.totals
        folder = tmp_path / name
        runs[name] = [save(folder, "mme", scores.correct, categories, groups)]
    rows = compare.compare(runs)
    assert [row.title for row in rows] == ["mme perception", "mme cognition"]
    for name, totals in wanted.items():
        found = {row.title.split()[1]: row.seeds[name] for row in rows}
        assert found == {part: [pytest.approx(v)] for part, v in totals.items()}
    for row in rows:
        one = row.differences["hive"]
        assert one.low <= one.value <= one.high
        assert one.wins + one.losses + one.ties == (4 if "cogn" in row.title else 20)


def probed(folder, depths, **changes):
    """Evaluations of a probe: depth -> share of hits; the last has no suffix."""
    for depth, share in depths.items():
        task = "probe_linear" + (f"_depth{depth}" if depth != max(depths) else "")
        about = {"checkpoint": {"depth": depth}, **changes}
        save(folder, task, scores_of(depth, share), **about)
    return str(folder)


def test_the_reference_is_compared_at_its_best_depth_too(tmp_path):
    seeds = [probed(tmp_path / f"a{n}", {6: 0.2, 7: 0.9, 8: 0.5}) for n in range(2)]
    hive = probed(tmp_path / "b", {8: 0.7})
    (row,) = compare.compare({"base": seeds, "hive": [hive]})
    assert [*row.seeds] == ["base", "base, best depth", "hive"]
    assert row.best_depth == 7
    at = {
        depth: 100 * scores_of(depth, share).mean()
        for depth, share in {7: 0.9, 8: 0.5}.items()
    }
    assert row.seeds["base"] == [at[8]] * 2
    assert row.seeds["base, best depth"] == [at[7]] * 2
    ours = 100 * scores_of(8, 0.7).mean()
    values = {name: one.value for name, one in row.differences.items()}
    assert values == {
        "base, best depth": pytest.approx(at[7] - at[8]),
        "hive": pytest.approx(ours - at[8]),
        "hive - base, best depth": pytest.approx(ours - at[7]),
    }
    text = tables.write(tmp_path / "out", [row])
    assert "probe_linear: base is best at depth 7" in text
    assert tables.read(tmp_path / "out") == [row]


def test_only_depths_of_all_seeds_and_of_equal_settings_count(tmp_path):
    a = probed(tmp_path / "a", {7: 0.9, 8: 0.5})
    b = probed(tmp_path / "b", {8: 0.5})
    hive = probed(tmp_path / "c", {7: 0.1, 8: 0.7})
    (row,) = compare.compare({"base": [a, b], "hive": [hive]})
    assert [*row.seeds] == ["base", "hive"] and row.best_depth == 0
    other = probed(tmp_path / "d", {7: 0.9}, recipe={"epochs": 2})
    (tmp_path / "d/probe_linear").rename(tmp_path / "d/probe_linear_depth7")
    save(tmp_path / "d", "probe_linear", scores_of(8, 0.5), checkpoint={"depth": 8})
    path = tmp_path / "d/probe_linear_depth7/result.json"
    path.write_text(path.read_text().replace("probe_linear", "probe_linear_depth7"))
    with pytest.raises(DataError, match=r"recipe"):
        compare.compare({"base": [other], "hive": [hive]})


def test_seeds_are_evaluations_of_one_name(tmp_path):
    folders = {
        name: [
            save(tmp_path / f"{name}{seed}", "gqa", scores_of(7 * seed + place, 0.5))
            for seed in range(3)
        ]
        for place, name in enumerate(("base", "hive"))
    }
    (row,) = compare.compare(folders)
    assert len(row.seeds["base"]) == len(row.seeds["hive"]) == 3
    text = tables.markdown([row])
    assert "±" in text and "over up to 3 seeds" in text


def test_total_is_the_sum_of_the_strata():
    strata = {"a": np.array([[1.0, 3.0]]), "b": np.array([[10.0]])}
    assert total(strata).tolist() == [12.0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": "d2"}, "data: d1 -> d2"),
        ({"variant": "lmms_eval"}, "variant: tabletop -> lmms_eval"),
        ({"decoding": {"seed": 1}}, "decoding: None -> "),
    ],
)
def test_other_settings_are_refused(changes, line, tmp_path):
    a = save(tmp_path / "a", "gqa", scores_of(0, 0.5))
    b = save(tmp_path / "b", "gqa", scores_of(0, 0.5), **changes)
    with pytest.raises(DataError, match=f"(?s)cannot be compared.*{line}"):
        compare.compare({"a": [a], "b": [b]})


def test_other_questions_are_refused(tmp_path):
    a = save(tmp_path / "a", "gqa", scores_of(0, 0.5))
    b = save(tmp_path / "b", "gqa", scores_of(0, 0.5)[:39])
    with pytest.raises(DataError, match="their questions differ"):
        compare.compare({"a": [a], "b": [b]})


def test_tasks_that_one_lacks_are_left_out(tmp_path):
    a = save(tmp_path / "a", "gqa", scores_of(0, 0.5))
    save(tmp_path / "a", "okvqa", scores_of(0, 0.5))
    b = save(tmp_path / "b", "okvqa", scores_of(1, 0.5))
    (row,) = compare.compare({"a": [a], "b": [b]})
    assert row.title == "okvqa"
    c = save(tmp_path / "c", "mme", [1.0] * 2, ["color"] * 2, ["x"] * 2)
    with pytest.raises(HiveError, match="no task was evaluated for b and for another"):
        compare.compare({"b": [b], "c": [c]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=x"], "names are a; expected two or more"),
        (["=x", "b=y"], "expected NAME=PATH"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        compare.compare(parse_named_paths(arguments))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(HiveError, match="expected TASK/result.json"):
        compare.read_evaluations(str(tmp_path))
    (tmp_path / "gqa").mkdir()
    result, samples = tmp_path / "gqa/result.json", tmp_path / "gqa/samples.jsonl"
    good = '{"task": "gqa", "scores": {}}'
    for result_text, samples_text, message in (
        ('{"task": 5, "scores": {}}', "", "result.json: 'task' is 5; expected a text"),
        ('{"task": "gqa"}', "", "result.json has no 'scores'; expected an object"),
        ("[" * 10**5, "", "result.json is nested too deeply"),
        (good, "{", "samples.jsonl, line 1 is not JSON"),
        (good, "5", "samples.jsonl, line 1: expected an object, got 5"),
        (
            good,
            '{"id": "1", "score": "x"}',
            "line 1: 'score' is 'x'; expected a number",
        ),
        (good.replace("gqa", "mme"), '{"id": 1, "score": 1}', "line 1 has no 'group'"),
    ):
        result.write_text(result_text)
        samples.write_text(samples_text)
        with pytest.raises(DataError, match=message):
            compare.read_evaluations(str(tmp_path))


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    save(run / "evaluation", "gqa", scores_of(0, 0.4))  # in a run's workdir
    other = save(tmp_path / "other", "gqa", scores_of(1, 0.6))
    out = tmp_path / "out"
    line = [f"base={run}", f"hive={other}", "--out", str(out), "--paper"]
    assert compare_command(line) == 0
    shown = capsys.readouterr().out
    assert (out / "compare.md").read_text() in shown
    assert "| VLM, OK-VQA | 48.78 | 46.19 | 51.01 |" in shown
    assert json.loads((out / "compare.json").read_text())["rows"][0]["title"] == "gqa"
    with Image.open(out / "compare.png") as picture:
        assert picture.width > 300
    assert compare_command(["base=nowhere", f"hive={other}"]) == 66


def test_the_paper_comes_with_what_keeps_it_from_being_comparable(tmp_path):
    """Under its numbers, which have no number of a table of hyperparameters."""
    a = save(tmp_path / "a", "gqa", scores_of(0, 0.4))
    b = save(tmp_path / "b", "gqa", scores_of(1, 0.6))
    rows = compare.compare({"base": [a], "hive": [b]})
    own, paper = tables.markdown(rows, paper=True).split("Results of the paper:")
    assert own.strip() == tables.markdown(rows).strip()
    numbers, note = paper.split("They are comparable with the columns above only where")
    assert numbers.count("\n|") == 2 + len(tables.PAPER)
    for different in ("encoder: SigLIP L/16-384", "MobileLLM", "Qwen2-0.5B-Instruct"):
        assert different in note
    assert (ROOT / "docs/what_differs.md").is_file() and "docs/what_differs.md" in note
    assert not any("able 4" in title or "able 5" in title for title in tables.PAPER)


def test_validation_prints_the_losses_of_runs(tmp_path, capsys):
    losses = {"loss": 1.0, "image_gain": 0.25, "image_gain/colour": 2.0}
    result = json.dumps({"step": 1, "validation": losses})
    (tmp_path / "result.json").write_text(result)
    assert compare_command(["--validation", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    header, _, row = [line.split(" | ") for line in lines]
    cells = dict(zip(header, row, strict=True))
    assert cells["loss"] == "1.000" and cells["gain"] == "0.250"
    assert cells["gain, colour |"] == "2.000 |" and cells["no image"].strip() == ""
    assert compare_command(["--validation", str(tmp_path / "no")]) == 66
    assert "has not finished" in capsys.readouterr().err


def test_validation_of_what_is_not_a_run(tmp_path):
    with pytest.raises(HiveError, match="no such run, or it has not finished"):
        tables.validation({"a": str(tmp_path)})
    with pytest.raises(ConfigError, match="expected a local path"):
        tables.validation({"a": "hdfs://host/run"})
