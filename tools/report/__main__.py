"""One run, or several side by side, as one page of HTML that needs no other file.

python -m tools.report workdir/stage3 --out report.html
python -m tools.report hive=RUN cascaded=RUN --include comparison export/hive
"""

import argparse
import sys

from hive_jax.errors import reporting
from hive_jax.evaluation.compare import one_each
from hive_jax.training import compilation
from tools.report.report import write_report


@reporting
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        "--sweep_depths, tools/export_hf.py, tools.benchmark",
    )
    args = parser.parse_args(arguments)
    compilation.keep_compiled_programs()
    write_report(args.out, one_each(args.runs), base=args.base, include=args.include)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
