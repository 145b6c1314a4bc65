"""One run, or several side by side, as one page of HTML that needs no other file.

python tools/report.py hive=workdir/stage3 cascaded=workdir/stage3_cascaded --out report.html
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.analysis.reporting import write_report
from hive_jax.errors import reporting
from hive_jax.evaluation.comparing import named


@reporting
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    parser.add_argument("--out", default="report.html", help="file to write")
    parser.add_argument(
        "--base", default="builtin:tabletop_siglip", help="encoder to compare with"
    )
    parser.add_argument("--export", nargs="*", default=[], help="folders of exports")
    parser.add_argument("--benchmark", default="", help="folder of tools/benchmark.py")
    args = parser.parse_args(arguments)
    runs = {name: paths[0] for name, paths in named(args.runs).items()}
    write_report(
        args.out, runs, base=args.base, exports=args.export, benchmarks=args.benchmark
    )
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
