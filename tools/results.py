"""Prints the final validation of finished runs as a Markdown table.

    python tools/results.py workdir/stage1 workdir/stage2 workdir/stage3

Losses are in nats per token. The gain is what looking is worth: the loss with another
scene's image minus that with the right one; of all words, and of each kind.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.console import report_errors
from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.errors import MissingInputError
from hive_jax.io import read_json

_LOSSES = {
    "loss": "loss",
    "loss_wrong_image": "wrong image",
    "loss_no_image": "no image",
    "image_gain": "gain",
}


def row(workdir: str) -> list[str]:
    """The cells of one run. Raises MissingInputError if it has no result."""
    path = Path(workdir) / "result.json"
    if not path.is_file():
        raise MissingInputError(f"{path} is not there: the run has not finished")
    values = read_json(path)["validation"]
    names = [*_LOSSES, *(f"image_gain/{kind}" for kind in TAG_NAMES[1:])]
    cells = [f"{values[name]:.3f}" if name in values else "" for name in names]
    return [Path(workdir).name, *cells]


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="+")
    rows = [row(workdir) for workdir in parser.parse_args().workdir]
    header = ["run", *_LOSSES.values(), *(f"gain, {kind}" for kind in TAG_NAMES[1:])]
    lines = [header, ["---"] * len(header), *rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
