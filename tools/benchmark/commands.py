"""The parts of the benchmark: each prints a table, and writes its JSON and its figure."""

import dataclasses
import importlib

from tqdm import tqdm

from hive_jax.console import show
from tools.benchmark import grid, tables
from tools.benchmark.cases import FULL_SIZE, SIZES, Size


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
    size = SIZES[arguments.size or ("tiny" if part == "step" else FULL_SIZE)]
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
