"""Measures what HIVE costs: FLOPs, memory, time; against self-attention and PyTorch.

    python -m tools.benchmark flops                       counted, full size
    python -m tools.benchmark memory                      compiled, full size
    python -m tools.benchmark step                        timed on this machine
    python -m tools.benchmark peers                       timed against PyTorch
    python -m tools.benchmark growth --part flops|memory|step   over image tokens
    python -m tools.benchmark input                       images read a second, waits
    python -m tools.benchmark gpu --part ceilings|grid|ablations

Each prints a table, and writes NAME.json and NAME.png to --out.
"""

import argparse
import os
import sys
from pathlib import Path

from hive_jax.console import report_errors
from tools.benchmark.cases import FULL_SIZE, SIZES, STAGES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, size: str, function: str = "") -> argparse.ArgumentParser:
        subparser = commands.add_parser(
            name, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        subparser.set_defaults(run=function or name)
        subparser.add_argument(
            "--size", choices=sorted(SIZES), default=size or None, help="model size"
        )
        subparser.add_argument(
            "--stages", type=_stages, default=STAGES, help="e.g. 1,3"
        )
        subparser.add_argument(
            "--out",
            type=Path,
            default=Path("workdir/benchmark"),
            help="folder to write",
        )
        subparser.add_argument(
            "--dtype",
            choices=("auto", "float32", "bfloat16"),
            default="auto",
            help="of the computation",
        )
        return subparser

    command("flops", FULL_SIZE)
    command("memory", FULL_SIZE).add_argument(
        "--batch_size", type=_positive, default=32, help="images a step"
    )
    subparser = command("step", "tiny")
    subparser.add_argument("--rounds", type=_positive, default=9, help="timings")
    subparser.add_argument(
        "--batch_size", type=_positive, default=0, help="0: the size's"
    )
    command("peers", "tiny").add_argument(
        "--rounds", type=_positive, default=7, help="timings"
    )
    subparser = command("growth", "")
    subparser.add_argument("--part", choices=("flops", "memory", "step"), required=True)
    subparser.add_argument("--rounds", type=_positive, default=5, help="timings")
    subparser.add_argument(
        "--batch_size", type=_positive, default=0, help="0: 32 compiled, 2 timed"
    )
    # The function has another name, because `input` is Python's.
    subparser = command("input", "tiny", "reading")
    subparser.add_argument("--rounds", type=_positive, default=9, help="timings")
    subparser.add_argument(
        "--batch_size", type=_positive, default=0, help="0: the size's"
    )
    subparser.add_argument("--image_size", type=_positive, default=384, help="pixels")
    subparser.add_argument(
        "--count", type=_positive, default=256, help="images of the set"
    )
    subparser.add_argument(
        "--threads", type=_positive, default=os.cpu_count(), help="of the loader"
    )
    subparser = command("gpu", FULL_SIZE)
    subparser.add_argument(
        "--part", choices=("ceilings", "grid", "ablations"), required=True
    )
    subparser.add_argument(
        "--minutes", type=float, default=8.0, help="start nothing later"
    )
    subparser.add_argument(
        "--batch_size", type=_positive, default=0, help="0: the size's"
    )
    return parser


def _stages(text: str) -> tuple[int, ...]:
    stages = tuple(int(number) for number in text.split(","))
    if not stages or set(stages) - set(STAGES):
        raise argparse.ArgumentTypeError(f"{text!r}; expected some of 1,2,3")
    return stages


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 or more")
    return int(text)


@report_errors
def main(arguments: list[str] | None = None) -> int:
    # Read when JAX first looks for devices: peers share the memory of one GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = _parser().parse_args(arguments)
    # Here, because importing JAX would delay --help.
    from tools.benchmark import commands

    getattr(commands, options.run)(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
