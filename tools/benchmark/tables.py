"""Figures of a grid as a Markdown table, a chart and JSON."""

import json
from collections.abc import Callable
from pathlib import Path

from hive_jax.errors import OutputError
from tools.benchmark.cases import FUSIONS
from tools.benchmark.grid import PAPER
from tools.benchmark.machine import described, machine

COLOURS = {
    "hive": "#2a7f9e",
    "joint": "#5fb49c",
    "cascaded": "#9ecae1",
    "self_attention": "#d1495b",
}


def ratios(rows: list[dict], key: str) -> dict[tuple[int, str], float]:
    """Returns (stage, fusion) -> the value relative to self-attention in that stage.

    Args:
      rows: of the grid, self-attention included in each stage.
      key: of the value in a row.
    """
    values = {(row["stage"], row["fusion"]): row[key] for row in rows}
    return {
        (stage, fusion): value / values[stage, "self_attention"]
        for (stage, fusion), value in values.items()
    }


def flops_table(rows: list[dict]) -> str:
    components = (
        "encoder",
        "projector",
        "image_keys",
        "text",
        "cross_attention",
        "logits",
    )
    total, without_encoder = ratios(rows, "total"), ratios(rows, "without_encoder")

    def cells(row):
        key = row["stage"], row["fusion"]
        return [
            *(f"{row[component] / 1e9:.0f}" for component in components),
            f"{row['total'] / 1e9:.0f}",
            f"{row['xla'] / 1e9:.0f}",
            f"{row['xla'] / row['total'] - 1:+.1%}",
            f"{total[key]:.3f}",
            f"{without_encoder[key]:.3f}",
        ]

    names = [component.replace("_", " ") for component in components]
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


def gpu_table(rows: list[dict]) -> str:
    """Of one row, too: the header comes with the first."""

    def figure(row: dict, key: str, unit: float, digits: int) -> str:
        return f"{row[key] / unit:.{digits}f}" if row.get(key) else ""

    columns = {
        "images/s": ("images_per_second", 1, 1),
        "times SA": ("speed_up", 1, 2),
        "TFLOP/s": ("flop_per_second", 1e12, 2),
        "of matmul": ("matmul_share", 1, 3),
        "peak, GB": ("peak_bytes", 1e9, 2),
        "compilation, s": ("compile_seconds", 1, 0),
        "GB/s": ("bytes_per_second", 1e9, 1),
    }
    lines = [["what", *columns], ["---"] * (1 + len(columns))]
    for row in rows:
        cells = [figure(row, *column) for column in columns.values()]
        lines.append(
            [
                row["what"],
                *(cells if "left_out" not in row else [row["left_out"], *cells[1:]]),
            ]
        )
    return markdown(lines)


def peers_table(comparison: dict) -> str:
    """Of `peers.compare`."""
    header = ["stage", "variant", "ms", "images/s", "time / hive_jax HIVE", "loss"]
    lines = [header, ["---"] * len(header)]
    for stage, entries in comparison["stages"].items():
        for name, entry in entries.items():
            if "out_of_memory" in entry:
                lines.append([str(stage), name, "out of memory", "", "", ""])
                continue
            lines.append(
                [
                    str(stage),
                    name,
                    f"{entry['median'] * 1e3:.0f}",
                    f"{entry['images_per_second']:.1f}",
                    f"{entry['times']['hive_jax HIVE']:.2f}",
                    f"{entry['losses'][-1]:.6f}",
                ]
            )
    return markdown(lines)


def reading_table(rows: list[dict]) -> str:
    lines = [["what", "threads", "images/s"], ["---"] * 3]
    lines += [
        [row["what"], str(row["threads"]), f"{row['images_per_second']:.0f}"]
        for row in rows
    ]
    return markdown(lines)


def waiting_table(rows: list[dict]) -> str:
    lines = [["stage", "threads", "images/s", "time spent waiting"], ["---"] * 4]
    for row in rows:
        cells = (row["stage"], row["threads"], f"{row['images_per_second']:.1f}")
        lines.append([*map(str, cells), f"{row['data_wait']:.1%}"])
    return markdown(lines)


def padding_table(rows: list[dict]) -> str:
    header = [f"padded to {rows[0]['padded_to']}, ms", "by length, ms"]
    lines = [["stage", *header, "time", "FLOPs"], ["---"] * 5]
    for row in rows:
        saved = (
            f"{row[f'{what}_by_length'] / row[what] - 1:+.1%}"
            for what in ("seconds", "flops")
        )
        times = (f"{1e3 * row[f'seconds{key}']:.1f}" for key in ("", "_by_length"))
        lines.append([str(row["stage"]), *times, *saved])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """Formats lines of cells; the first is the header, the second its rule."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(header: list[str], rows: list[dict], cells: Callable) -> str:
    lines = [["stage", "fusion", *header], ["---"] * (len(header) + 2)]
    lines += [[str(row["stage"]), row["fusion"], *cells(row)] for row in rows]
    return markdown(lines)


def write(folder: Path, name: str, about: dict, rows: list[dict]) -> None:
    """Writes the rows of a benchmark to FOLDER/NAME.json.

    Args:
      folder: created if it does not exist.
      name: of the benchmark.
      about: settings, written beside the rows.
      rows: the measurements.

    Raises:
      OutputError: the file cannot be written.
    """
    content = {"benchmark": name, **about, "machine": machine(), "rows": rows}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {folder}/{name}.json: {error}") from error


def bars(path: Path, values: dict[str, float], label: str) -> None:
    """Draws one horizontal bar for each name, from the top.

    Args:
      path: of the image file to write.
      values: by name; PyTorch variants have a colour of their own.
      label: of the value axis, with its unit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 + 0.28 * len(values)), layout="constrained")
    axes = figure.subplots()
    # Names are "stage 1, torch SA, tuned".
    is_hive_jax = [not name.split(", ", 1)[-1].startswith("torch") for name in values]
    colours = [COLOURS["hive" if own else "self_attention"] for own in is_hive_jax]
    drawn = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(drawn, fmt="{:,.1f}", padding=3, fontsize=8)
    # matplotlib counts from the bottom.
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(label)
    axes.set_title(described(machine()), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def chart(path: Path, rows: list[dict], key: str, unit: float, label: str) -> None:
    """Draws bars by stage and fusion, each with its ratio to self-attention.

    A dashed line marks where HIVE would be by the paper's ratio.

    Args:
      path: of the image file to write; its stem is a key of PAPER.
      rows: of the grid.
      key: of the value in a row.
      unit: that values are divided by.
      label: of the value axis, with its unit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    stages = sorted({row["stage"] for row in rows})
    ratio, width = ratios(rows, key), 0.2
    paper = PAPER[path.stem]
    for row in rows:
        # The bars are around each stage's tick.
        place = FUSIONS.index(row["fusion"]) - (len(FUSIONS) - 1) / 2
        x = stages.index(row["stage"]) + width * place
        value = row[key] / unit
        first = row["stage"] == stages[0]
        axes.bar(
            x,
            value,
            width * 0.92,
            color=COLOURS[row["fusion"]],
            label=row["fusion"] if first else None,
        )
        text = f"{ratio[row['stage'], row['fusion']]:.2f}x"
        axes.annotate(text, (x, value), ha="center", va="bottom", fontsize=8)
        if row["fusion"] == "self_attention":
            # Over HIVE's bar, the first; self-attention's is the last.
            hive = x - width * (len(FUSIONS) - 1)
            ends = (hive - width / 2, hive + width / 2)
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
