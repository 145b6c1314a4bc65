"""Reports on one run, or several side by side, as one self-contained HTML page.

python -m tools.report workdir/stage3 --out report.html
python -m tools.report hive=PATH cascaded=PATH --include comparison export/hive
"""

import argparse
import sys

from hive_jax.console import parse_unique_paths, report_errors, show


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]PATH", help="workdirs of runs"
    )
    parser.add_argument(
        "--out", default="report.html", help="file to write (default: report.html)"
    )
    parser.add_argument(
        "--base",
        default="builtin:tabletop_siglip",
        help="encoder to compare features with (default: %(default)s)",
    )
    parser.add_argument(
        "--include",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="outputs of hive_jax.compare, hive_jax.probe --sweep_depths, "
        "tools/export_hf.py or tools.benchmark (default: none)",
    )
    args = parser.parse_args(arguments)
    # Here, because importing JAX would delay --help.
    from hive_jax.training.compilation_cache import enable_compilation_cache
    from tools.report.report import write_report

    enable_compilation_cache()
    write_report(
        args.out, parse_unique_paths(args.runs), base=args.base, include=args.include
    )
    show(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
