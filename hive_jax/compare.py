"""Compares evaluations: each with the first, which is the reference.

Takes workdirs of runs, or folders that hive_jax.evaluate or hive_jax.probe wrote. Give
a name several times for several seeds. With --validation it prints the losses of the
final validation instead, in nats per token. The gain is the loss with another sample's
image minus that with the correct one; of all words, and by kind.
"""

import argparse
import sys

from hive_jax.buckets import as_path
from hive_jax.console import parse_named_paths, parse_unique_paths, report_errors, show

_EXAMPLES = """examples:
  python -m hive_jax.compare base=workdir/a hive=workdir/b --out comparison
  python -m hive_jax.compare --validation workdir/stage1 workdir/stage2 workdir/stage3
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Here, because importing JAX would delay --help.
    from hive_jax.evaluation import compare, tables

    if options.validation:
        show(tables.validation(parse_unique_paths(options.runs)))
        return 0
    rows = compare.compare(parse_named_paths(options.runs))
    show(tables.write(as_path(options.out), rows, options.paper), end="")
    show(f"\n{as_path(options.out) / 'compare.png'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.compare",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="NAME=PATH", help="the first is the reference")
    add("--out", default="comparison", help="folder to write (default: comparison)")
    add("--paper", action="store_true", help="add the paper's numbers (default: off)")
    add(
        "--validation",
        action="store_true",
        help="print final validation losses of runs instead; writes nothing",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
