"""The paper, small: base, HIVE and both baselines, their probes, VLMs and benchmarks.

    python -m tools.reproduce --scale tabletop --seeds 3 --out reproduction
    python -m tools.reproduce --scale tabletop --quick --out quick
    python -m tools.reproduce --scale tabletop_long --seeds 1 --out long

Run it again after an interruption and it goes on where it stopped. The tables, beside
the paper's, are in OUT/comparison; accuracy at every depth is in OUT/depths.
"""

import argparse
import sys

from hive_jax.console import report_errors, show
from tools.reproduce.reproduce import reproduce
from tools.reproduce.steps import QUICK, SCALES


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scale",
        default="tabletop",
        choices=[*SCALES],
        help="size of the experiments (default: tabletop)",
    )
    parser.add_argument("--seeds", type=int, help="(default: 3, and 1 with --quick)")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--quick", action="store_true", help="few steps, one seed (default: off)"
    )
    args = parser.parse_args(arguments)
    seeds = args.seeds if args.seeds is not None else (1 if args.quick else 3)
    folder = reproduce(args.out, QUICK if args.quick else SCALES[args.scale], seeds)
    show((folder / "compare.md").read_text("utf-8"))
    show(folder / "compare.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
