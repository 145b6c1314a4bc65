"""Parts of a report: what runs have written of themselves, side by side."""

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
from hive_jax.io import read_json
from tools.report import page


def results(runs: Mapping[str, str]) -> str:
    """Tabulates the final validation of each run, name -> workdir."""
    found = {name: _result(run).get("validation", {}) for name, run in runs.items()}
    keys = dict.fromkeys(key for values in found.values() for key in values)
    rows = [
        [key.replace("_", " "), *(_number(one.get(key)) for one in found.values())]
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
    having = {}
    for name, workdir in runs.items():
        try:
            having[name] = compare.read_evaluations(workdir)
        except MissingInputError:
            continue  # none has been made
    if not having:
        return ""
    tasks = dict.fromkeys(task for found in having.values() for task in found)
    rows = [
        [f"{task} {score}", *(_score(found, task, score) for found in having.values())]
        for task in tasks
        for score in dict.fromkeys(
            s for f in having.values() if task in f for s in f[task].result["scores"]
        )
    ]
    body = page.heading("Probes and benchmarks") + page.table(["task", *having], rows)
    if len(having) == 1:
        return body
    try:
        return body + comparison(
            compare.compare({name: [runs[name]] for name in having})
        )
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
    found = {n: _result(run).get("relative_distance", {}) for n, run in runs.items()}
    parts = dict.fromkeys(part for one in found.values() for part in one)
    rows = [
        [part, *(f"{one[part]:.1e}" if part in one else "" for one in found.values())]
        for part in parts
    ]
    intro = "How far each part moved from where its run started, |after - before| / |before|."
    return page.paragraph(intro) + page.table(["part", *runs], rows) if rows else ""


def configuration(trained_models: Mapping[str, TrainedModel]) -> str:
    """Tabulates the config keys that differ, and all of them, collapsed."""
    flat = {
        name: flatten_dict(to_dict(one.config), sep=".")
        for name, one in trained_models.items()
    }
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = [[key, *(values.get(key, "") for values in flat.values())] for key in keys]
    different = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    header = ["key", *trained_models]
    folded = page.folded("all keys", page.table(header, rows, words=True))
    return page.table(header, different, words=True) + folded


def _score(found: dict, task: str, score: str) -> str:
    return _number(found[task].result["scores"].get(score)) if task in found else ""


def _result(workdir: str) -> dict:
    path = Path(workdir) / "result.json"
    return read_json(path) if path.is_file() else {}


def _number(value) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
