"""Figures: matplotlib without a screen, PNG files written atomically."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.io import atomic_write

_MAX_LABELS = 60  # more class names than these are illegible


def new_figure(width: float, height: float):
    """Returns a matplotlib figure that needs no display.

    Args:
      width: in inches.
      height: in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path: Path, dpi: int = 120) -> None:
    """Writes a figure as PNG, atomically.

    Args:
      figure: a matplotlib figure.
      path: of the file; one that exists is replaced.
      dpi: pixels per inch.

    Raises:
      OutputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def draw_confusion(
    path: Path, matrix: np.ndarray, classes: Sequence[str], title: str
) -> None:
    """Draws a confusion matrix, each row as shares of its sum.

    Args:
      path: PNG file to write.
      matrix: int[classes, classes], true class by predicted class.
      classes: names in the order of the rows.
      title: start of the figure's title.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= _MAX_LABELS
    side = max(4.5, 0.2 * len(classes) + 2.5) if named else 8
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    if named:
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=90, fontsize=8)
        axes.set_yticks(places, classes, fontsize=8)
    accuracy = matrix.trace() / max(matrix.sum(), 1)
    axes.set_title(f"{title}: {accuracy:.1%} right")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    save(figure, path)


def draw_depths(path: Path, encoders: Mapping[str, Mapping], chance: float) -> None:
    """Draws accuracy against depth.

    Args:
      path: PNG file to write.
      encoders: name -> {"depths": [...], "accuracy": [...], "std": [...]}, in percent.
      chance: accuracy of a guess, in percent.
    """
    figure = new_figure(6.4, 4)
    axes = figure.add_subplot()
    for name, curve in encoders.items():
        axes.errorbar(
            curve["depths"],
            curve["accuracy"],
            curve["std"],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.axhline(chance, color="grey", linestyle=":", label="chance")
    axes.set_xlabel("encoder block")
    axes.set_ylabel("accuracy of the probe, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
