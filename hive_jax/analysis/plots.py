"""Figures of an analysis: heat maps over images, lines by layer, training curves."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

import numpy as np

from hive_jax.analysis.attention import WordAttention
from hive_jax.analysis.examples import CaptionedImage
from hive_jax.buckets import as_path
from hive_jax.errors import DataError, MissingInputError
from hive_jax.json_text import parse_json
from hive_jax.plotting import new_figure, save

# Title -> keys of metrics.jsonl; the first key present is drawn. Which one there is depends
# on the objective.
CURVES = {
    "loss": ("train/loss",),
    "validation loss": ("validation/loss",),
    "image gain, nats per token": ("validation/image_gain", "validation/accuracy"),
    "gradient norm": ("train/grad_norm",),
    "images per second": ("train/images_per_second",),
    "model FLOPs utilization": ("train/mfu",),
}
_MAX_WORDS = 16  # columns per figure; more are illegible
_HEAT = "inferno"
# One for each run; further runs repeat them with dashes.
_COLOURS = ("#2a7f9e", "#edae49", "#d1495b", "#66a182", "#7f7f7f", "#9467bd")
_DASHES = ("-", "--", ":")


def read_curves(workdir: str) -> dict[str, tuple[list[int], list[float]]]:
    """Reads the training curves of a run from its metrics.jsonl.

    Lines that are not valid JSON, as after a crash, are skipped.

    Args:
      workdir: folder of the run.

    Returns:
      Title -> (steps, values), for the titles in `CURVES` with data.

    Raises:
      MissingInputError: the file does not exist.
    """
    path = as_path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist: no such run")
    lines = []
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        with contextlib.suppress(DataError):
            lines.append(parse_json(line, str(path), dict))
    # Titles without data are left out: a run without an image has no image gain.
    curves = {}
    for title, keys in CURVES.items():
        points = [
            (line["step"], next(line[key] for key in keys if key in line))
            for line in lines
            if "step" in line and any(key in line for key in keys)
        ]
        if points:
            steps, values = zip(*points, strict=True)
            curves[title] = [*steps], [*values]
    return curves


def as_grid(values: np.ndarray) -> np.ndarray:
    """Reshapes values [..., P] of the patches of a square image to [..., rows, columns]."""
    side = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:-1], side, side)


def draw_gradients(path: Path, example: CaptionedImage, sizes: np.ndarray) -> None:
    """Draws gradient norms over an image, layer by layer.

    Args:
      path: PNG file to write.
      example: image and caption.
      sizes: gradient norms |d loss / d F_l|, float32[L, P]. The upper row has a colour
        scale for each layer, the lower row one for all layers.
    """
    grids = as_grid(sizes)
    count = len(grids)
    figure = new_figure(1.25 * (count + 1) + 0.8, 3.6)
    panels = figure.subplots(2, count + 1, squeeze=False)
    for row, title in zip(panels, ("a scale for each layer", "one scale"), strict=True):
        row[0].imshow(example.image)
        row[0].set_title("image", fontsize=8)
        row[0].set_ylabel(title, fontsize=8)
        for layer, (axes, grid) in enumerate(zip(row[1:], grids, strict=True), 1):
            # A scale for each layer shows where, a common one shows how much.
            top = grids.max() if title == "one scale" else grid.max()
            # Any panel of the lower row can stand for the colour bar: they share a
            # scale.
            drawn = _overlay(axes, example.image, grid, top)
            axes.set_title(f"layer {layer}\n{_format_scale(top)}", fontsize=7)
    figure.colorbar(
        drawn, ax=panels[1].tolist(), label="|d loss / d F|", shrink=0.8, pad=0.01
    )
    figure.suptitle(_shorten(example.caption, 110), fontsize=9)
    _remove_ticks(panels)
    save(figure, path)


def draw_attention(path: Path, example: CaptionedImage, words: WordAttention) -> None:
    """Draws attention maps, a column per word and a row per connected decoder layer.

    Weights are averaged over heads. Each panel has its own colour scale, since words and
    layers differ widely in their attention to the image.

    Args:
      path: PNG file to write.
      example: image and caption.
      words: words of the caption with their attention weights.
    """
    grids = as_grid(words.weights.mean(axis=1))[:, :_MAX_WORDS]
    names = [
        f"LLM layer {layer}\nreads depth {depth}"
        for layer, depth in zip(words.layers, words.depths, strict=True)
    ]
    _draw_grid(path, example, grids, names, words)


def draw_heads(
    path: Path, example: CaptionedImage, words: WordAttention, connection: int
) -> None:
    """Draws attention maps, a column per word and a row per head of one connection.

    Args:
      path: PNG file to write.
      example: image and caption.
      words: words of the caption with their attention weights.
      connection: index of the connection, from 0.
    """
    grids = as_grid(words.weights[connection])[:, :_MAX_WORDS]
    layer, depth = words.layers[connection], words.depths[connection]
    names = [
        f"LLM layer {layer}, head {number}\nreads depth {depth}"
        for number in range(1, len(grids) + 1)
    ]
    _draw_grid(path, example, grids, names, words)


def draw_layers(
    path: Path, examples: Sequence[CaptionedImage], colours: np.ndarray
) -> None:
    """Draws features as colours, a row per image and a column per depth.

    Args:
      path: PNG file to write.
      examples: n images.
      colours: float[L, n, P, 3], from 0 to 1; see `features.principal_colours`.
    """
    depth, count = colours.shape[:2]
    figure = new_figure(1.2 * (depth + 1), 1.25 * count + 0.4)
    panels = figure.subplots(count, depth + 1, squeeze=False)
    for row, (one, line) in enumerate(zip(examples, panels, strict=True)):
        line[0].imshow(one.image)
        for number in range(depth):
            side = round(colours.shape[2] ** 0.5)
            # Column 0 is the image.
            line[number + 1].imshow(colours[number, row].reshape(side, side, 3))
    for number, axes in enumerate(panels[0]):
        axes.set_title(f"depth {number}" if number else "image", fontsize=8)
    _remove_ticks(panels)
    save(figure, path)


def _draw_grid(
    path,
    example: CaptionedImage,
    grids: np.ndarray,
    names: Sequence[str],
    words: WordAttention,
):
    """Draws heat maps grids[rows, words, height, width] over the image."""
    count = grids.shape[1]
    figure = new_figure(1.15 * (count + 1) + 0.6, 1.3 * len(grids) + 0.6)
    panels = figure.subplots(len(grids), count + 1, squeeze=False)
    for line, name, row in zip(panels, names, grids, strict=True):
        line[0].imshow(example.image)
        line[0].set_ylabel(name, fontsize=7)
        for axes, grid in zip(line[1:], row, strict=True):
            _overlay(axes, example.image, grid, grid.max())
    # Not strict: words beyond _MAX_WORDS have no column.
    for axes, word in zip(panels[0][1:], words.words, strict=False):
        axes.set_title(_shorten(word, 16), fontsize=9)
    title = _shorten(example.caption, 110)
    if len(words.words) > count:
        title += f" (the first {count} of {len(words.words)} words)"
    figure.suptitle(title, fontsize=9)
    _remove_ticks(panels)
    save(figure, path)


def _overlay(axes, image: np.ndarray, grid: np.ndarray, top: float):
    """Draws a heat map over the image in grey; returns the artist for a colour bar."""
    grey = image.mean(axis=-1)
    side = image.shape[0]
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    return axes.imshow(
        grid,
        cmap=_HEAT,
        vmin=0,
        vmax=top or 1,
        alpha=0.75,
        # Stretched over the pixels of the image, whose first row is at the top.
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        interpolation="nearest",
    )


def _remove_ticks(panels) -> None:
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])


def _format_scale(top: float) -> str:
    return f"0 to {top:.1e}"


def _shorten(text: str, length: int) -> str:
    text = " ".join(text.split())
    # matplotlib would typeset text between dollar signs as a formula.
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return text.replace("$", r"\$")


def draw_flow(path: Path, flow: Mapping[str, np.ndarray], title: str) -> None:
    """Draws the mean gradient norm by layer: absolute, and relative to the last layer.

    Args:
      path: PNG file to write.
      flow: name -> float32[L]; see `gradients.gradient_flow`.
      title: title of the figure.
    """
    figure = new_figure(9, 3.6)
    raw, relative = figure.subplots(1, 2)
    for sizes, style in _styled(flow):
        layers = range(1, len(sizes) + 1)
        raw.plot(layers, sizes, marker="o", **style)
        # A model without any gradient has lines at 0.
        last = sizes[-1] or 1.0
        relative.plot(layers, sizes / last, marker="o", **style)
    for axes, label in (
        (raw, "mean |d loss / d F|"),
        (relative, "relative to the last layer"),
    ):
        # Gradients of fusions differ by orders of magnitude.
        axes.set_yscale("log")
        _label_axes(axes, "encoder layer", label)
    raw.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_changes(path: Path, changes: Mapping[str, Mapping[str, Sequence]]) -> None:
    """Draws CKA with the base encoder, and the distance from it, by depth.

    Args:
      path: PNG file to write.
      changes: name -> {"cka": [...], "distance": [...]}, a value per depth; see
        `features.compare_features`.
    """
    figure = new_figure(9, 3.4)
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("cka", "distance"),
        ("linear CKA with the base encoder", "|F - F of base| / |F of base|"),
        strict=True,
    ):
        for values, style in _styled(changes):
            depths = range(1, len(values[key]) + 1)
            axes.plot(depths, values[key], marker="o", **style)
        _label_axes(axes, "encoder depth", label)
        axes.legend(fontsize=8)
    save(figure, path)


def draw_curves(path: Path, runs: Mapping[str, Mapping[str, tuple]]) -> None:
    """Draws training curves, a panel per title of `CURVES` and a line per run.

    Args:
      path: PNG file to write.
      runs: name -> curves of the run; see `read_curves`.
    """
    titles = [*dict.fromkeys(title for curves in runs.values() for title in curves)]
    columns = min(3, max(1, len(titles)))
    rows = math.ceil(len(titles) / columns) or 1
    figure = new_figure(3.8 * columns, 2.9 * rows)
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axes, title in zip(panels, titles, strict=False):
        for curves, style in _styled(runs):
            if title in curves:
                axes.plot(*curves[title], lw=1.3, **style)
        _label_axes(axes, "step", "")
        axes.set_title(title, fontsize=9)
    # Panels that fill the last row.
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    if titles:
        figure.axes[0].legend(fontsize=7)
    save(figure, path)


def _styled(named: Mapping) -> Iterator[tuple]:
    """Yields (value, line style) of each entry; dashed once the colours are used up."""
    styles = cycle(product(_DASHES, _COLOURS))
    for (name, value), (dash, colour) in zip(named.items(), styles, strict=False):
        yield value, {"label": name, "color": colour, "linestyle": dash}


def _label_axes(axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
