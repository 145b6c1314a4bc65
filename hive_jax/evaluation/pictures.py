"""Pictures as files that appear whole."""

from pathlib import Path

from hive_jax.data.files import written


def new_figure(width: float, height: float):
    """A matplotlib figure of so many inches, drawn without a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path: Path, dpi: int = 120) -> None:
    """Writes a PNG. Raises OutputError."""
    with written(path):
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png", dpi=dpi)
        temporary.replace(path)
