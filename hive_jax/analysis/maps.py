"""Heat maps over images: gradients by layer, attention by word, features as colours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hive_jax.analysis.attention import Words
from hive_jax.analysis.shown import Shown
from hive_jax.evaluation.pictures import new_figure, save

_MOST_WORDS = 16  # of a page
_HEAT = "inferno"


def as_grid(values: np.ndarray) -> np.ndarray:
    """[..., P] of a square image -> [..., rows, columns]."""
    side = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:-1], side, side)


def draw_gradients(path: Path, shown: Shown, sizes: np.ndarray) -> None:
    """The image, then |d loss / d F_l| float32[L, P] of each layer over it, first to
    last: each on a scale of its own, and below all on one."""
    grids = as_grid(sizes)
    count = len(grids)
    figure = new_figure(1.25 * (count + 1) + 0.8, 3.6)
    panels = figure.subplots(2, count + 1, squeeze=False)
    for row, title in zip(panels, ("a scale for each layer", "one scale"), strict=True):
        row[0].imshow(shown.image)
        row[0].set_title("image", fontsize=8)
        row[0].set_ylabel(title, fontsize=8)
        for layer, (axes, grid) in enumerate(zip(row[1:], grids, strict=True), 1):
            top = grids.max() if title == "one scale" else grid.max()
            drawn = _over(axes, shown.image, grid, top)
            axes.set_title(f"layer {layer}\n{_scale(top)}", fontsize=7)
    figure.colorbar(
        drawn, ax=panels[1].tolist(), label="|d loss / d F|", shrink=0.8, pad=0.01
    )
    figure.suptitle(_cut(shown.caption, 110), fontsize=9)
    _bare(panels)
    save(figure, path)


def draw_attention(path: Path, shown: Shown, words: Words) -> None:
    """Words along the top, connected layers down the side; the mean over heads, each
    panel on a scale of its own."""
    grids = as_grid(words.attention_weights.mean(axis=1))[:, :_MOST_WORDS]
    names = [
        f"LLM layer {layer}\nreads depth {depth}"
        for layer, depth in zip(words.layers, words.depths, strict=True)
    ]
    _page(path, shown, grids, names, words)


def draw_heads(path: Path, shown: Shown, words: Words, connection: int) -> None:
    """The same for the heads of one connection, counted from 0."""
    grids = as_grid(words.attention_weights[connection])[:, :_MOST_WORDS]
    layer, depth = words.layers[connection], words.depths[connection]
    names = [
        f"LLM layer {layer}, head {number}\nreads depth {depth}"
        for number in range(1, len(grids) + 1)
    ]
    _page(path, shown, grids, names, words)


def draw_layers(path: Path, shown: Sequence[Shown], colours: np.ndarray) -> None:
    """Features as colours [L, n, P, 3]: a line for each image, a column for a depth."""
    depth, count = colours.shape[:2]
    figure = new_figure(1.2 * (depth + 1), 1.25 * count + 0.4)
    panels = figure.subplots(count, depth + 1, squeeze=False)
    for row, (one, line) in enumerate(zip(shown, panels, strict=True)):
        line[0].imshow(one.image)
        for number in range(depth):
            side = round(colours.shape[2] ** 0.5)
            line[number + 1].imshow(colours[number, row].reshape(side, side, 3))
    for number, axes in enumerate(panels[0]):
        axes.set_title(f"depth {number}" if number else "image", fontsize=8)
    _bare(panels)
    save(figure, path)


def _page(path, shown: Shown, grids: np.ndarray, names: Sequence[str], words: Words):
    """grids [rows, words, height, width]."""
    count = grids.shape[1]
    figure = new_figure(1.15 * (count + 1) + 0.6, 1.3 * len(grids) + 0.6)
    panels = figure.subplots(len(grids), count + 1, squeeze=False)
    for line, name, row in zip(panels, names, grids, strict=True):
        line[0].imshow(shown.image)
        line[0].set_ylabel(name, fontsize=7)
        for axes, grid in zip(line[1:], row, strict=True):
            _over(axes, shown.image, grid, grid.max())
    for axes, word in zip(panels[0][1:], words.words, strict=False):
        axes.set_title(_cut(word, 16), fontsize=9)
    title = _cut(shown.caption, 110)
    if len(words.words) > count:
        title += f" (the first {count} of {len(words.words)} words)"
    figure.suptitle(title, fontsize=9)
    _bare(panels)
    save(figure, path)


def _over(axes, image: np.ndarray, grid: np.ndarray, top: float):
    """A heat map over a pale image; returns what a colour bar needs."""
    grey = image.mean(axis=-1)
    side = image.shape[0]
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    return axes.imshow(
        grid,
        cmap=_HEAT,
        vmin=0,
        vmax=top or 1,
        alpha=0.75,
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        interpolation="nearest",
    )


def _bare(panels) -> None:
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])


def _scale(top: float) -> str:
    return f"0 to {top:.1e}"


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    # A dollar sign would begin a formula.
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return text.replace("$", r"\$")
