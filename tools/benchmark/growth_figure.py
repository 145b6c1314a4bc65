"""Growth of cost as a Markdown table and a figure."""

from pathlib import Path

from tools.benchmark.growth import COSTS, by_resolution, exponents
from tools.benchmark.machine import described, machine
from tools.benchmark.tables import COLOURS, markdown

# Divisor and label of a cost, by part.
_UNITS = {
    "flops": (1e9, "GFLOP an example"),
    "memory": (1e9, "GB"),
    "step": (1e-3, "ms a step"),
}
# Curves of cross-attention lie upon each other.
_MARKERS = {"hive": "o", "joint": "s", "cascaded": "x", "self_attention": "D"}


def growth_table(part: str, rows: list[dict]) -> str:
    """Formats the first cost of a part at each point, and the exponents of all.

    Args:
      part: a key of COSTS.
      rows: of that part.
    """
    unit, label = _UNITS[part]
    first = next(iter(COSTS[part]))
    fitted = {cost: exponents(rows, cost) for cost in COSTS[part]}
    points = list(dict.fromkeys((r["image_tokens"], r["text_tokens"]) for r in rows))
    costs = {
        (r["stage"], r["fusion"], r["image_tokens"], r["text_tokens"]): r[first]
        for r in rows
    }
    header = [
        *(f"{image} + {text}" for image, text in points),
        *(f"exponent, {name}" for name in COSTS[part].values()),
    ]
    lines = [
        ["stage", f"fusion ({label})", *header],
        ["---"] * (len(header) + 2),
    ]
    for stage, fusion in fitted[first]:
        values = (costs[stage, fusion, *point] / unit for point in points)
        lines.append(
            [
                str(stage),
                fusion,
                *(
                    f"{value:.1f}" if unit == 1e9 else f"{value:.0f}"
                    for value in values
                ),
                *(f"{fitted[cost][stage, fusion]:.2f}" for cost in fitted),
            ]
        )
    return markdown(lines)


def draw_growth(path: Path, part: str, rows: list[dict]) -> None:
    """Draws log cost over log image tokens: a row of panels a cost, a column a stage.

    Args:
      path: of the image file to write.
      part: a key of COSTS.
      rows: of that part.
    """
    from matplotlib.figure import Figure

    unit, label = _UNITS[part]
    series = by_resolution(rows)
    stages = sorted({stage for stage, _ in series})
    costs = COSTS[part]
    figure = Figure(
        figsize=(1 + 3.4 * len(stages), 0.6 + 2.7 * len(costs)), layout="constrained"
    )
    panels = figure.subplots(
        len(costs), len(stages), squeeze=False, sharex=True, sharey="row"
    )
    for (cost, name), row_of_panels in zip(costs.items(), panels, strict=True):
        fitted = exponents(rows, cost)
        for (stage, fusion), measured in series.items():
            axes = row_of_panels[stages.index(stage)]
            tokens = [row["image_tokens"] for row in measured]
            axes.loglog(
                tokens,
                [row[cost] / unit for row in measured],
                color=COLOURS[fusion],
                marker=_MARKERS[fusion],
                markersize=5,
                label=f"{fusion}: {fitted[stage, fusion]:.2f}",
            )
            # The measured numbers of tokens in place of powers of ten.
            axes.set_xticks(tokens, [str(number) for number in tokens])
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axes.tick_params(axis="y", which="both", labelsize=7)
        for stage, axes in zip(stages, row_of_panels, strict=True):
            axes.set_title(f"stage {stage}, {name}", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
            legend = axes.legend(frameon=False, fontsize=7, title="exponent")
            legend.get_title().set_fontsize(7)
        row_of_panels[0].set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("image tokens")
    figure.suptitle(described(machine()), fontsize=9)
    figure.savefig(path, dpi=130)
