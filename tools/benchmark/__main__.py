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
import dataclasses
import importlib
import os
import sys
from pathlib import Path

from tqdm import tqdm

from hive_jax.console import report_errors, show
from tools.benchmark import grid, tables
from tools.benchmark.cases import SIZES, STAGES, Size

_FULL = "siglip_l16_384+gemma3_1b"


def rules(stages) -> dict[int, tuple]:
    """Loads the optimizer rules of each stage from its config file."""
    # The paper's own rules, so that what is measured trains what the stages train.
    modules = {
        stage: importlib.import_module(f"configs.stage{stage}") for stage in stages
    }
    return {
        stage: module.get_config("paper").rules for stage, module in modules.items()
    }


def flops(arguments) -> None:
    rows = grid.flops(SIZES[arguments.size], rules(arguments.stages))
    _report(arguments, "flops", rows, tables.flops_table, "total", 1e9)


def memory(arguments) -> None:
    rows = grid.memory(
        SIZES[arguments.size],
        rules(arguments.stages),
        arguments.dtype,
        arguments.batch_size,
    )
    _report(arguments, "memory", rows, tables.memory_table, "peak", 1e9)


def step(arguments) -> None:
    rows = grid.step(
        _size(arguments),
        rules(arguments.stages),
        arguments.dtype,
        arguments.rounds,
    )
    _report(arguments, "step", rows, tables.step_table, "seconds", 1e-3)


def peers(arguments) -> None:
    from tools.benchmark.peers import compare

    comparison = compare(
        SIZES[arguments.size], rules(arguments.stages), rounds=arguments.rounds
    )
    show(tables.peers_table(comparison))
    values = {
        f"stage {stage}, {name}": entry["images_per_second"]
        for stage, entries in comparison["stages"].items()
        for name, entry in entries.items()
        if "images_per_second" in entry
    }
    _save(arguments, "peers", [comparison], values, "images/s")


def _size(arguments) -> Size:
    size = SIZES[arguments.size]
    batch_size = arguments.batch_size or size.batch_size
    return dataclasses.replace(size, batch_size=batch_size)


def gpu(arguments) -> None:
    from tools.benchmark import gpu as gpu_benchmark

    size = _size(arguments)
    # Rows of 8 tokens fill the tiles of the hardware: 77 becomes 80.
    size = dataclasses.replace(size, num_tokens=-(-size.num_tokens // 8) * 8)
    inputs = (size, rules(arguments.stages), arguments.dtype, arguments.minutes)
    if arguments.part == "ceilings":
        rows = gpu_benchmark.ceilings(size, arguments.dtype)
    else:
        rows = getattr(gpu_benchmark, arguments.part)(*inputs)
    name = f"gpu_{arguments.part}"
    measured = []
    for row in rows:
        measured.append(row)
        # Row by row, to the screen and to the file: a time limit may end the process.
        show(tables.gpu_table([row]).splitlines()[-1])
        tables.write(arguments.out, name, _settings(arguments), measured)
    show(tables.gpu_table(measured))
    key, unit = "images_per_second", 1.0
    if arguments.part == "ceilings":
        key, unit = "flop_per_second", 1e12
    values = {row["what"]: row[key] / unit for row in measured if key in row}
    label = "images/s" if unit == 1.0 else "TFLOP/s"
    _save(arguments, name, measured, values, label)


def reading(arguments) -> None:
    from tools.benchmark import data_wait
    from tools.benchmark.data_throughput import reading as measure_reading

    threads, of_stages = arguments.threads, rules(arguments.stages)
    measured = measure_reading(arguments.image_size, arguments.count, threads)
    rows = list(tqdm(measured, desc="parts", total=7))
    show(tables.reading_table(rows))
    inputs = (_size(arguments), of_stages, arguments.dtype, arguments.rounds)
    for run, table in (
        (data_wait.waiting(*inputs, threads), tables.waiting_table),
        (data_wait.padding(*inputs), tables.padding_table),
    ):
        stage_rows = list(tqdm(run, desc="stages", total=len(of_stages)))
        show(table(stage_rows))
        rows += stage_rows
    values = {row["what"]: row["images_per_second"] for row in rows if "what" in row}
    _save(arguments, "input", rows, values, "images/s")


def growth(arguments) -> None:
    from tools.benchmark import growth as over_tokens
    from tools.benchmark.growth_figure import draw_growth, growth_table

    part, of_stages = arguments.part, rules(arguments.stages)
    # Small towers and batches for steps that are run and not only compiled.
    size = SIZES[arguments.size or ("tiny" if part == "step" else _FULL)]
    points = over_tokens.POINTS
    if part == "flops":
        rows = over_tokens.flops(size, of_stages, points)
    elif part == "memory":
        batch_size = arguments.batch_size or 32
        rows = over_tokens.memory(size, of_stages, arguments.dtype, batch_size, points)
    else:
        size = dataclasses.replace(size, batch_size=arguments.batch_size or 2)
        inputs = (size, of_stages, arguments.dtype, arguments.rounds, points)
        rows = list(over_tokens.step(*inputs))
    name = f"growth_{part}"
    show(growth_table(part, rows))
    tables.write(arguments.out, name, _settings(arguments), rows)
    draw_growth(arguments.out / f"{name}.png", part, rows)
    show(f"written to {arguments.out}/{name}.json and {name}.png")


_LABELS = {
    "flops": "GFLOP an example",
    "memory": "peak, GB",
    "step": "ms a step",
}


def _report(arguments, name, rows, table, key, unit) -> None:
    show(table(rows))
    tables.write(arguments.out, name, _settings(arguments), rows)
    tables.chart(arguments.out / f"{name}.png", rows, key, unit, _LABELS[name])
    show(f"written to {arguments.out}/{name}.json and {name}.png")


def _save(arguments, name: str, rows: list, values: dict, label: str) -> None:
    tables.write(arguments.out, name, _settings(arguments), rows)
    tables.bars(arguments.out / f"{name}.png", values, label)
    show(f"written to {arguments.out}/{name}.json and {name}.png")


def _settings(arguments) -> dict:
    # Neither the function of the command nor a path of this machine.
    return {k: v for k, v in vars(arguments).items() if k not in ("run", "out")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, size: str, name: str = "") -> argparse.ArgumentParser:
        subparser = commands.add_parser(
            name or run.__name__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        subparser.set_defaults(run=run)
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

    command(flops, _FULL)
    command(memory, _FULL).add_argument(
        "--batch_size", type=_positive, default=32, help="images a step"
    )
    subparser = command(step, "tiny")
    subparser.add_argument("--rounds", type=_positive, default=9, help="timings")
    subparser.add_argument(
        "--batch_size", type=_positive, default=0, help="0: the size's"
    )
    command(peers, "tiny").add_argument(
        "--rounds", type=_positive, default=7, help="timings"
    )
    subparser = command(growth, "")
    subparser.add_argument("--part", choices=("flops", "memory", "step"), required=True)
    subparser.add_argument("--rounds", type=_positive, default=5, help="timings")
    subparser.add_argument(
        "--batch_size", type=_positive, default=0, help="0: 32 compiled, 2 timed"
    )
    # The function has another name, because `input` is Python's.
    subparser = command(reading, "tiny", "input")
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
    subparser = command(gpu, _FULL)
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
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
