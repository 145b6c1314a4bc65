"""Comparisons as Markdown, JSON and a figure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.buckets import as_path
from hive_jax.errors import DataError, MissingInputError
from hive_jax.evaluation.compare import ScoreComparison
from hive_jax.evaluation.paired_statistics import Difference
from hive_jax.io import (
    read_json,
    require_path,
    require_writable,
    write_json,
    write_text,
)
from hive_jax.plotting import new_figure, save
from hive_jax.training.stored_run import read_result

COMPARISON = "compare.json"
# Results that the paper reports for SigLIP L/16-384: the VLM on top, and the
# classification with the frozen encoder. Tables 4 and 5 of its supplement are their
# hyperparameters.
PAPER = {
    "VLM, MME": {"base": 1296, "self_attention": 1263, "hive": 1298},
    "VLM, GQA": {"base": 57.74, "self_attention": 57.69, "hive": 58.05},
    "VLM, OK-VQA": {"base": 48.78, "self_attention": 46.19, "hive": 51.01},
    "VLM, ScienceQA": {"base": 62.34, "self_attention": 59.56, "hive": 63.12},
    "classification, Food-101": {"hive": 96.56},
    "classification, Caltech-256": {"hive": 97.33},
}
# Everything that a run must share with the paper's for its numbers to be comparable.
_PAPER_NOTE = """\
They are comparable with the columns above only where those runs have the same

- encoder: SigLIP L/16-384, read at the block before the last, with a new LayerNorm in
  classification;
- pre-training: MobileLLM as the teacher, on CC3M with synthetic captions (VLM) or
  alt-text (classification);
- VLM: Qwen2-0.5B-Instruct with its chat template, trained on LLaVA's data;
- test: the complete official sets, the VLM's scored by lmms-eval.

docs/what_differs.md of hive_jax lists what it does instead, point by point. No weights
were released that the numbers could be checked against."""
# Columns of a table of final validations, by key of result.json.
_VALIDATION = {
    "loss": "loss",
    "loss_wrong_image": "wrong image",
    "loss_no_image": "no image",
    "image_gain": "gain",
}
# Grey for the reference, which comes first.
_COLOURS = ("#7f7f7f", "#2a7f9e", "#9ecae1", "#d1495b", "#edae49", "#66a182")


def scores(rows: Sequence[ScoreComparison]) -> list[list[str]]:
    """Returns table rows of the scores: a header, then a row per score, a column per name."""
    names = _names(rows)
    lines = [
        [row.title, *(_score(row.seeds[n]) if n in row.seeds else "" for n in names)]
        for row in rows
    ]
    return [["task", *names], *lines]


def differences(rows: Sequence[ScoreComparison]) -> list[list[str]]:
    """Returns table rows of the differences from the first name, the reference."""
    lines = [["task", "", "difference", "95 %", "better", "worse", "equal", "p"]]
    for row in rows:
        for name, difference in row.differences.items():
            interval = f"{difference.low:+.2f} to {difference.high:+.2f}"
            counts = (
                f"{count:.4g}"
                for count in (difference.wins, difference.losses, difference.ties)
            )
            lines.append(
                [row.title, name, f"{difference.value:+.2f}", interval, *counts]
            )
            lines[-1].append(f"{difference.p:.2g}")
    return lines


def about(rows: Sequence[ScoreComparison]) -> str:
    """Returns the caption of the table of `differences`."""
    return (
        f"Against {_names(rows)[0]}, with a paired bootstrap over questions and seeds; "
        "questions answered better, worse and equally well; p of the signs of their "
        "differences:"
    )


def markdown(rows: Sequence[ScoreComparison], paper: bool = False) -> str:
    """Formats a comparison as Markdown: scores, then differences from the reference.

    Args:
      rows: compared scores.
      paper: append the paper's results.
    """
    blocks = [_table(scores(rows))]
    seeds = max(len(values) for row in rows for values in row.seeds.values())
    if seeds > 1:
        blocks.append(f"Mean and standard deviation over up to {seeds} seeds.")
    for row in rows:
        if row.best_depth:
            blocks.append(
                f"{row.title}: {next(iter(row.seeds))} is best at depth "
                f"{row.best_depth}, chosen by these test data."
            )
    blocks += [about(rows), _table(differences(rows))]
    if paper:
        models = dict.fromkeys(n for values in PAPER.values() for n in values)
        reported = [
            [title, *(str(values.get(n, "")) for n in models)]
            for title, values in PAPER.items()
        ]
        table = _table([["task", *models], *reported])
        blocks += ["Results of the paper:", table, _PAPER_NOTE]
    return "\n\n".join(blocks) + "\n"


def write(folder: Path, rows: Sequence[ScoreComparison], paper: bool = False) -> str:
    """Writes compare.md, compare.json and compare.png; returns the Markdown.

    Args:
      folder: folder to write; made if it does not exist.
      rows: compared scores.
      paper: include the paper's results.

    Raises:
      OutputError: a file cannot be written.
    """
    require_writable(folder)
    # The same rows in three forms: for a README, for a program, and as a figure.
    text = markdown(rows, paper)
    write_text(folder / "compare.md", text)
    write_json(
        folder / COMPARISON,
        {"rows": [dataclasses.asdict(row) for row in rows]}
        | ({"paper": PAPER} if paper else {}),
    )
    draw(folder / "compare.png", rows)
    return text


def read(folder: Path) -> list[ScoreComparison]:
    """Reads the rows of a compare.json written by `write`.

    Raises:
      DataError: the file is missing or malformed.
    """
    try:
        rows = read_json(folder / COMPARISON)["rows"]
        return [
            ScoreComparison(
                row["title"],
                row["seeds"],
                {name: Difference(**one) for name, one in row["differences"].items()},
                row["best_depth"],
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / COMPARISON}: expected a file of hive_jax.compare: {error!r}"
        ) from None


def validation(runs: Mapping[str, str]) -> str:
    """Formats the final validation of runs, name -> workdir, as a Markdown table.

    Raises:
      MissingInputError: a run has no result.json.
    """
    values = {name: _final_validation(workdir) for name, workdir in runs.items()}
    gains = [
        key
        for key in dict.fromkeys(key for one in values.values() for key in one)
        if key.startswith("image_gain/") and key != "image_gain/other"
    ]
    # "image_gain/TAG"; tokens without a tag are "other".
    titles = _VALIDATION | {key: f"gain, {key.split('/')[1]}" for key in gains}
    lines = [
        [name, *(f"{one[key]:.3f}" if key in one else "" for key in titles)]
        for name, one in values.items()
    ]
    return _table([["run", *titles.values()], *lines])


def _final_validation(workdir: str) -> dict[str, float]:
    require_path(workdir, "workdir")
    result = read_result(workdir)
    if result is None:
        path = as_path(workdir) / "result.json"
        raise MissingInputError(
            f"{path} does not exist: no such run, or it has not finished"
        )
    return result["validation"]


def draw(path: Path, rows: Sequence[ScoreComparison]) -> None:
    """Draws a panel for each score: mean bars, seeds as dots, intervals as lines.

    Args:
      path: PNG file to write.
      rows: compared scores.
    """
    names = _names(rows)
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(3.1 * columns, 2.9 * lines)
    for number, row in enumerate(rows, 1):
        axes = figure.add_subplot(lines, columns, number)
        # A name without this score leaves its place empty: bars keep place and colour.
        for position, name in enumerate(names):
            if name not in row.seeds:
                continue
            values = np.array(row.seeds[name])
            colour = _COLOURS[position % len(_COLOURS)]
            axes.bar(position, values.mean(), color=colour, width=0.7)
            axes.scatter([position] * len(values), values, color="black", s=8, zorder=3)
            # The interval of the difference, drawn from the reference's mean.
            if difference := row.differences.get(name):
                start = np.mean(row.seeds[names[0]])
                ends = [start + difference.low, start + difference.high]
                axes.plot([position, position], ends, color="black", lw=1.2, zorder=2)
        # Scores differ by little, so the axis does not start at 0; the lower bounds keep
        # equal scores from giving an empty axis.
        all_scores = np.concatenate([*row.seeds.values()])
        margin = max(np.ptp(all_scores), 0.02 * abs(all_scores.max()), 1e-6)
        axes.set_ylim(
            max(0, all_scores.min() - 1.5 * margin), all_scores.max() + margin
        )
        axes.set_xticks(range(len(names)), names, rotation=20, fontsize=8, ha="right")
        axes.set_title(row.title, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def _names(rows: Sequence[ScoreComparison]) -> list[str]:
    return [*dict.fromkeys(name for row in rows for name in row.seeds)]


def _score(values: list[float]) -> str:
    # Sample standard deviation: the seeds are a sample of all possible ones.
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def _table(lines: list[list[str]]) -> str:
    header, *rest = lines
    rows = [header, ["---"] * len(header), *rest]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
