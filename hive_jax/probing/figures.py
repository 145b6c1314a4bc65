"""Pictures of probes: which classes are taken for which, and accuracy by depth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.evaluation.pictures import new_figure, save

_NAMED = 60  # classes whose names can be read


def draw_confusion(
    path: Path, matrix: np.ndarray, classes: Sequence[str], title: str
) -> None:
    """A PNG of int[right, found]; each row in shares of its sum."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= _NAMED
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
    axes.set_xlabel("found")
    axes.set_ylabel("right")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    save(figure, path)


def draw_depths(path: Path, encoders: Mapping[str, Mapping], chance: float) -> None:
    """A PNG of accuracy against depth.

    Args:
      encoders: name -> {"depths": [...], "accuracy": [...], "std": [...]}, in percent.
      chance: accuracy of a guess, in percent.
    """
    figure = new_figure(6.4, 4)
    axes = figure.add_subplot()
    for name, found in encoders.items():
        axes.errorbar(
            *(found["depths"], found["accuracy"], found["std"]),
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
