"""Lines: gradients by layer, how far features moved, curves of runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

import numpy as np

from hive_jax.evaluation.pictures import new_figure, save

_COLOURS = ("#2a7f9e", "#edae49", "#d1495b", "#66a182", "#7f7f7f", "#9467bd")
_DASHES = ("-", "--", ":")


def draw_flow(path: Path, flow: Mapping[str, np.ndarray], title: str) -> None:
    """The mean size of the gradient at each layer: as it is, and relative to the last."""
    figure = new_figure(9, 3.6)
    raw, relative = figure.subplots(1, 2)
    for sizes, style in _styled(flow):
        layers = range(1, len(sizes) + 1)
        raw.plot(layers, sizes, marker="o", **style)
        last = sizes[-1] or 1.0
        relative.plot(layers, sizes / last, marker="o", **style)
    for axes, label in (
        (raw, "mean |d loss / d F|"),
        (relative, "relative to the last layer"),
    ):
        axes.set_yscale("log")
        _dress(axes, "encoder layer", label)
    raw.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_changes(path: Path, changes: Mapping[str, Mapping[str, Sequence]]) -> None:
    """CKA with the base encoder, and the distance from it, by depth."""
    figure = new_figure(9, 3.4)
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("cka", "distance"),
        ("linear CKA with the base encoder", "|F - F of base| / |F of base|"),
        strict=True,
    ):
        for found, style in _styled(changes):
            depths = range(1, len(found[key]) + 1)
            axes.plot(depths, found[key], marker="o", **style)
        _dress(axes, "encoder depth", label)
        axes.legend(fontsize=8)
    save(figure, path)


def draw_curves(path: Path, runs: Mapping[str, Mapping[str, tuple]]) -> None:
    """A panel for each title of curves.CURVES, a line for each run."""
    titles = [*dict.fromkeys(title for curves in runs.values() for title in curves)]
    columns = min(3, max(1, len(titles)))
    rows = math.ceil(len(titles) / columns) or 1
    figure = new_figure(3.8 * columns, 2.9 * rows)
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axes, title in zip(panels, titles, strict=False):
        for curves, style in _styled(runs):
            if title in curves:
                axes.plot(*curves[title], lw=1.3, **style)
        _dress(axes, "step", "")
        axes.set_title(title, fontsize=9)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    if titles:
        figure.axes[0].legend(fontsize=7)
    save(figure, path)


def _styled(named: Mapping) -> Iterator[tuple]:
    """Each value, and how its line looks: dashed where the colours have run out."""
    styles = cycle(product(_DASHES, _COLOURS))
    for (name, value), (dash, colour) in zip(named.items(), styles, strict=False):
        yield value, {"label": name, "color": colour, "linestyle": dash}


def _dress(axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
