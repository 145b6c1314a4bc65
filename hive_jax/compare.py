"""Evaluations side by side; the first is what the others are compared with.

    python -m hive_jax.compare base=workdir/a hive=workdir/b --out comparison

Each is a run's workdir, or a folder that hive_jax.evaluate or hive_jax.probe wrote. The
same name several times stands for several seeds.
"""

import argparse
import sys
from pathlib import Path

from hive_jax.console import parse_named_paths, report_errors
from hive_jax.evaluation import comparing, tables


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m hive_jax.compare",
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", default="comparison", help="folder to write")
    parser.add_argument(
        "--paper", action="store_true", help="with the paper's own numbers"
    )
    args = parser.parse_args(arguments)
    rows = comparing.compared(parse_named_paths(args.runs))
    print(tables.write(Path(args.out), rows, args.paper), end="")
    print(f"\n{Path(args.out) / 'compare.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
