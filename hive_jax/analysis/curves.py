"""What runs have written of themselves while they trained."""

import json
from pathlib import Path

from hive_jax.errors import MissingInputError

# Title -> keys of metrics.jsonl, of which the first that is there is drawn.
CURVES = {
    "loss": ("train/loss",),
    "validation loss": ("validation/loss",),
    "image gain, nats per token": ("validation/image_gain", "validation/accuracy"),
    "gradient norm": ("train/grad_norm",),
    "images per second": ("train/images_per_second",),
}


def read_curves(workdir: str) -> dict[str, tuple[list[int], list[float]]]:
    """Title -> (steps, values) of a run's metrics.jsonl; lines that are cut are left out.

    Raises MissingInputError.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise MissingInputError(f"{path} is not there: no such run")
    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    found = {}
    for title, keys in CURVES.items():
        points = [
            (line["step"], next(line[key] for key in keys if key in line))
            for line in lines
            if any(key in line for key in keys)
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found[title] = [*steps], [*values]
    return found
