"""Measures what HIVE costs: FLOPs, memory, time; against self-attention and PyTorch.

    python tools/benchmark.py flops                       counted, full size
    python tools/benchmark.py memory                      compiled, full size
    python tools/benchmark.py step                        timed on this machine
    python tools/benchmark.py peers                       timed against PyTorch
    python tools/benchmark.py gpu --part ceilings|grid|ablations|torch

Each prints a table, and writes NAME.json and NAME.png to --out.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.benchmark import grids, reports
from hive_jax.benchmark.cases import SIZES, STAGES
from hive_jax.errors import HiveError

_FULL = "siglip_l16_384+gemma3_1b"


def rules(stages) -> dict[int, tuple]:
    """The rules of each stage, from its config file."""
    modules = {
        stage: importlib.import_module(f"configs.stage{stage}") for stage in stages
    }
    return {stage: module.RULES for stage, module in modules.items()}


def flops(arguments) -> None:
    rows = grids.flops(SIZES[arguments.size], rules(arguments.stages))
    _report(arguments, "flops", rows, reports.flops_table, "total", 1e9)


def memory(arguments) -> None:
    rows = grids.memory(
        SIZES[arguments.size],
        rules(arguments.stages),
        arguments.dtype,
        arguments.batch_size,
    )
    _report(arguments, "memory", rows, reports.memory_table, "peak", 1e9)


def step(arguments) -> None:
    rows = grids.step(
        SIZES[arguments.size],
        rules(arguments.stages),
        arguments.dtype,
        arguments.rounds,
    )
    _report(arguments, "step", rows, reports.step_table, "seconds", 1e-3)


_LABELS = {
    "flops": "GFLOP an example",
    "memory": "peak, GB",
    "step": "ms a step",
}


def _report(arguments, name, rows, table, key, unit) -> None:
    print(table(rows))
    settings = {k: v for k, v in vars(arguments).items() if k not in ("run", "out")}
    reports.write(arguments.out, name, settings, rows)
    reports.chart(arguments.out / f"{name}.png", rows, key, unit, _LABELS[name])
    print(f"written to {arguments.out}/{name}.json and {name}.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, size: str) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__)
        one.set_defaults(run=run)
        one.add_argument("--size", choices=sorted(SIZES), default=size)
        one.add_argument("--stages", type=_stages, default=STAGES, help="e.g. 1,3")
        one.add_argument("--out", type=Path, default=Path("workdir/benchmark"))
        one.add_argument(
            "--dtype", choices=("auto", "float32", "bfloat16"), default="auto"
        )
        return one

    command(flops, _FULL)
    command(memory, _FULL).add_argument("--batch_size", type=_positive, default=32)
    command(step, "tiny").add_argument("--rounds", type=_positive, default=9)
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


def main() -> int:
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except HiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
