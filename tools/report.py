"""One run, or several side by side, as one page of HTML that needs no other file.

python tools/report.py workdir/stage3 --out report.html
python tools/report.py hive=RUN cascaded=RUN --include comparison export/hive
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.analysis.reporting import write_report
from hive_jax.console import parse_unique_paths, report_errors
from hive_jax.training import runtime


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    parser.add_argument("--out", default="report.html", help="file to write")
    parser.add_argument(
        "--base", default="builtin:tabletop_siglip", help="encoder to compare with"
    )
    parser.add_argument(
        "--include",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="what other commands have written: hive_jax.compare, hive_jax.probe "
        "--sweep_depths, tools/export_hf.py, tools/benchmark.py",
    )
    args = parser.parse_args(arguments)
    runtime.enable_compilation_cache()
    write_report(
        args.out, parse_unique_paths(args.runs), base=args.base, include=args.include
    )
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
