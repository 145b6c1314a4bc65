"""Sections of a report: results, evaluations and configs of runs, side by side."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flax.traverse_util import flatten_dict

from hive_jax.config import to_dict
from hive_jax.console import log
from hive_jax.errors import HiveError, MissingInputError
from hive_jax.evaluation import compare, tables
from hive_jax.evaluation.compare import ScoreComparison
from hive_jax.inference.model import TrainedModel
from hive_jax.training.stored_run import read_result
from tools.report import page


def results(runs: Mapping[str, str]) -> str:
    """Tabulates the final validation of each run, name -> workdir."""
    validations = {
        # A run that has not finished has no result yet.
        name: (read_result(run) or {}).get("validation", {})
        for name, run in runs.items()
    }
    # A dict keeps the order, unlike a set: rows are in the order of the first run.
    keys = dict.fromkeys(key for values in validations.values() for key in values)
    rows = [
        [
            key.replace("_", " "),
            *(_number(one.get(key)) for one in validations.values()),
        ]
        for key in keys
    ]
    if not rows:
        return ""
    intro = (
        "Losses on held-out samples, in nats per token. The image gain is what looking "
        "is worth: the loss with another sample's image minus that with the right one."
    )
    return page.paragraph(intro) + page.table(["validation", *runs], rows)


def evaluations(runs: Mapping[str, str]) -> str:
    """Tabulates probes and benchmarks in the workdirs, and their comparison."""
    evaluated = {}
    for name, workdir in runs.items():
        try:
            evaluated[name] = compare.read_evaluations(workdir)
        except MissingInputError:
            continue  # none has been made
    if not evaluated:
        return ""
    tasks = dict.fromkeys(task for by_task in evaluated.values() for task in by_task)
    rows = [
        [
            f"{task} {score}",
            *(_score(by_task, task, score) for by_task in evaluated.values()),
        ]
        for task in tasks
        # All scores of a task over all runs, in order and once.
        for score in dict.fromkeys(
            s for f in evaluated.values() if task in f for s in f[task].result["scores"]
        )
    ]
    body = page.heading("Probes and benchmarks") + page.table(
        ["task", *evaluated], rows
    )
    # Nothing to compare with.
    if len(evaluated) == 1:
        return body
    try:
        return body + comparison(
            compare.compare({name: [runs[name]] for name in evaluated})
        )
    # Evaluations of other settings: their scores are shown above, without a test.
    except HiveError as error:
        log(f"not compared: {error}")
        return body + page.paragraph(f"Not compared: {error}")


def comparison(rows: Sequence[ScoreComparison]) -> str:
    """Tabulates each score with its intervals, and the tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compare.png"
        tables.draw(path, rows)
        picture = page.picture(
            path, "Scores; lines are 95 % intervals of the difference from the first."
        )
    header, *lines = tables.differences(rows)
    return picture + page.paragraph(tables.about(rows)) + page.table(header, lines)


def moved(runs: Mapping[str, str]) -> str:
    """Tabulates how far each component has moved since the start of its run."""
    distances = {
        n: (read_result(run) or {}).get("relative_distance", {})
        for n, run in runs.items()
    }
    groups = dict.fromkeys(group for one in distances.values() for group in one)
    rows = [
        [
            group,
            *(
                f"{one[group]:.1e}" if group in one else ""
                for one in distances.values()
            ),
        ]
        for group in groups
    ]
    intro = "How far each part moved from where its run started, |after - before| / |before|."
    return page.paragraph(intro) + page.table(["part", *runs], rows) if rows else ""


def configuration(trained_models: Mapping[str, TrainedModel]) -> str:
    """Tabulates the config keys that differ, and all of them, collapsed."""
    flat = {
        name: flatten_dict(to_dict(trained.config), sep=".")
        for name, trained in trained_models.items()
    }
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = [[key, *(values.get(key, "") for values in flat.values())] for key in keys]
    # As text, because values may be lists, which no set takes.
    different = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    header = ["key", *trained_models]
    folded = page.folded("all keys", page.table(header, rows, words=True))
    return page.table(header, different, words=True) + folded


def _score(by_task: dict, task: str, score: str) -> str:
    return _number(by_task[task].result["scores"].get(score)) if task in by_task else ""


def _number(value) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
