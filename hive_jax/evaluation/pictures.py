"""Pictures as files that appear whole."""

from pathlib import Path

from hive_jax.io import atomic_write


def new_figure(width: float, height: float):
    """A matplotlib figure of so many inches, drawn without a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path: Path, dpi: int = 120) -> None:
    """Writes a PNG. Raises OutputError."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
