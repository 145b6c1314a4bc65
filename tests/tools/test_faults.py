"""The fault suite with few cases of each fault, and its command."""

import json
from pathlib import Path

import pytest

from tools.fault_suite import command, kill
from tools.fault_suite.figure import Figure
from tools.fault_suite.suite import SUBJECTS, measure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compilation_cache")


# Orbax abandons the other reads and writes when one of them fails; Python complains
# about each of these coroutines when it collects it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("fault", "count"),
    [
        ("crash_states", 20),
        ("damage", 60),
        ("order", 100),
        ("bad_images", 5),
        ("config_fuzz", 300),
        ("mismatch", 100),
        ("nan", 5),
        ("hostile", 200),
        ("messages", 30),
    ],
)
def test_every_case_meets_its_goal(fault, count, cache, tmp_path):
    figure = measure(fault, count, str(tmp_path), cache)
    assert figure.passed, figure.failures
    assert figure.cases >= min(count, SUBJECTS[fault].count)


def test_killed_runs_end_with_the_bits_of_an_undisturbed_run(cache, tmp_path):
    figure = kill.measure(3, tmp_path, cache, stages=(1,))
    assert figure.passed, figure.failures
    assert figure.cases == 3 and "in a save" in figure.seen


def test_the_command_writes_the_figures_and_fails_if_one_misses(monkeypatch, tmp_path):
    (tmp_path / "faults.json").write_text(
        json.dumps({"kill": vars(Figure(7, "seven"))})
    )
    arguments = ["order", "--count=2", f"--out={tmp_path}"]
    assert command.main(arguments) == 0
    results = json.loads((tmp_path / "faults.json").read_text())
    assert results["order"]["cases"] == 2 and results["kill"]["cases"] == 7
    rows = (tmp_path / "faults.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| `kill`", "| `order`"]

    import tools.fault_suite.order

    lost = Figure(2, "two", ["step 3 is another"])
    monkeypatch.setattr(tools.fault_suite.order, "measure", lambda *_: lost)
    assert command.main(arguments) == 1
    assert "missed 1 times" in (tmp_path / "faults.md").read_text()


def test_a_skipped_figure_says_why_and_does_not_fail(monkeypatch, tmp_path, capsys):
    import tools.fault_suite.disk_full

    skipped = Figure(0, "", skipped="needs the right to mount a file system")
    monkeypatch.setattr(tools.fault_suite.disk_full, "measure", lambda *_: skipped)
    assert command.main(["disk_full", f"--out={tmp_path}"]) == 0
    assert "needs the right to mount" in capsys.readouterr().out
    assert "needs the right to mount" in (tmp_path / "faults.md").read_text()


def test_the_page_has_the_table_of_the_command():
    results = json.loads((ROOT / "docs/faults/faults.json").read_text())
    assert command.table(results) in (ROOT / "docs/reliability.md").read_text("utf-8")
