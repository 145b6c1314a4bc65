"""The paper, small: base, HIVE and both baselines, their probes, VLMs and benchmarks.

    python tools/reproduce.py --scale tabletop --seeds 3 --out reproduction
    python tools/reproduce.py --scale tabletop --quick --out quick
    python tools/reproduce.py --scale tabletop_long --seeds 1 --out long

Run it again after an interruption and it goes on where it stopped. The tables, beside
the paper's, are in OUT/comparison; accuracy at every depth is in OUT/depths.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.console import report_errors
from hive_jax.reproduction.reproducing import reproduce
from hive_jax.reproduction.steps import QUICK, SCALES


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="tabletop", choices=[*SCALES])
    parser.add_argument("--seeds", type=int, help="default: 3, and 1 with --quick")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed")
    args = parser.parse_args(arguments)
    seeds = args.seeds if args.seeds is not None else (1 if args.quick else 3)
    folder = reproduce(args.out, QUICK if args.quick else SCALES[args.scale], seeds)
    print((folder / "compare.md").read_text("utf-8"))
    print(folder / "compare.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
