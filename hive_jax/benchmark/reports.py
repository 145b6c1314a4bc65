"""Figures of a grid as a Markdown table, a chart and JSON."""

import json
from collections.abc import Callable
from pathlib import Path

from hive_jax.benchmark.cases import FUSIONS
from hive_jax.benchmark.grids import PAPER
from hive_jax.benchmark.machine import described, machine
from hive_jax.errors import OutputError

_COLOURS = {"hive": "#2a7f9e", "cascaded": "#9ecae1", "self_attention": "#d1495b"}


def ratios(rows: list[dict], key: str) -> dict[tuple[int, str], float]:
    """(stage, fusion) -> the value over that of self-attention in the same stage."""
    values = {(row["stage"], row["fusion"]): row[key] for row in rows}
    return {
        (stage, fusion): value / values[stage, "self_attention"]
        for (stage, fusion), value in values.items()
    }


def flops_table(rows: list[dict]) -> str:
    parts = ("encoder", "projector", "image_keys", "text", "cross_attention", "logits")
    whole, language = ratios(rows, "total"), ratios(rows, "without_encoder")

    def cells(row):
        key = row["stage"], row["fusion"]
        return [
            *(f"{row[part] / 1e9:.0f}" for part in parts),
            f"{row['total'] / 1e9:.0f}",
            f"{row['xla'] / 1e9:.0f}",
            f"{row['xla'] / row['total'] - 1:+.1%}",
            f"{whole[key]:.3f}",
            f"{language[key]:.3f}",
        ]

    names = [part.replace("_", " ") for part in parts]
    header = [*names, "all", "XLA's count", "differs", "/ SA", "/ SA, no encoder"]
    return _table(header, rows, cells)


def memory_table(rows: list[dict]) -> str:
    peak, temporary = ratios(rows, "peak"), ratios(rows, "temporary")

    def cells(row):
        key = row["stage"], row["fusion"]
        sizes = [f"{row[name] / 1e9:.2f}" for name in ("state", "temporary", "peak")]
        return [*sizes, f"{peak[key]:.3f}", f"{temporary[key]:.3f}"]

    header = ["state, GB", "temporary, GB", "peak, GB", "/ SA", "temporary / SA"]
    return _table(header, rows, cells)


def step_table(rows: list[dict]) -> str:
    time, flops = ratios(rows, "seconds"), ratios(rows, "flops")

    def cells(row):
        key = row["stage"], row["fusion"]
        return [
            f"{row['seconds'] * 1e3:.0f}",
            f"{row['images_per_second']:.1f}",
            f"{row['flop_per_second'] / 1e9:.0f}",
            f"{row['matmul_share']:.0%}",
            f"{time[key]:.3f}",
            f"{flops[key]:.3f}",
        ]

    header = ["ms", "images/s", "GFLOP/s", "of matmul", "time / SA", "FLOPs / SA"]
    return _table(header, rows, cells)


def _table(header: list[str], rows: list[dict], cells: Callable) -> str:
    lines = [["stage", "fusion", *header], ["---"] * (len(header) + 2)]
    lines += [[str(row["stage"]), row["fusion"], *cells(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(folder: Path, name: str, about: dict, rows: list[dict]) -> None:
    """FOLDER/NAME.json with the machine beside the rows. Raises OutputError."""
    content = {"benchmark": name, **about, "machine": machine(), "rows": rows}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {folder}/{name}.json: {error}") from error


def chart(path: Path, rows: list[dict], key: str, unit: float, label: str) -> None:
    """Bars by stage and fusion, each with its ratio to self-attention; the dashed
    line is where the paper's ratio would have HIVE."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    stages = sorted({row["stage"] for row in rows})
    ratio, width = ratios(rows, key), 0.27
    paper = PAPER[path.stem]
    for row in rows:
        x = stages.index(row["stage"]) + width * (FUSIONS.index(row["fusion"]) - 1)
        value = row[key] / unit
        first = row["stage"] == stages[0]
        axes.bar(
            x,
            value,
            width * 0.92,
            color=_COLOURS[row["fusion"]],
            label=row["fusion"] if first else None,
        )
        text = f"{ratio[row['stage'], row['fusion']]:.2f}x"
        axes.annotate(text, (x, value), ha="center", va="bottom", fontsize=8)
        if row["fusion"] == "self_attention":
            ends = (x - 2.5 * width, x - 1.5 * width)
            name = f"the paper's {paper:.2f}x" if first else None
            axes.hlines(
                value * paper, *ends, "black", "dashed", linewidth=1.2, label=name
            )
    axes.set_xticks(range(len(stages)), [f"stage {stage}" for stage in stages])
    axes.set_ylabel(label)
    axes.set_title(described(machine()), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
