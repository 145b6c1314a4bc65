"""Reports of plans: text with tables for one, a Markdown table of several, JSON."""

import dataclasses
from collections.abc import Iterable, Iterator

from hive_jax import io
from hive_jax.buckets import as_path
from hive_jax.config import RunConfig
from hive_jax.console import text_table
from hive_jax.errors import OutputError
from hive_jax.planning.advice import accumulate_that_fits, advise
from hive_jax.planning.hardware import GIB, Topology
from hive_jax.planning.plan import ASSUMED_MFU, Plan, make_plan

_LIMITS = {
    "compute": ("matrix products", 1e12, "TFLOP"),
    "memory": ("memory traffic", 1e9, "GB"),
    "interconnect": ("received over the links", 1e9, "GB"),
}

# Attempts to fit a batch that is too large, each with more micro-batches.
_ATTEMPTS = 3


def describe(plan: Plan) -> str:
    """Describes a plan in text, with advice at the end."""
    blocks = [_head(plan), _memory(plan), _verdict(plan)]
    # A program that was not compiled has no work or time to report.
    if plan.compiled.memory is not None:
        blocks += [_collectives(plan), _work(plan), _stage(plan)]
    blocks.append("\n".join(f"- {line}" for line in advise(plan)))
    return "\n\n".join(filter(None, blocks))


def _head(plan: Plan) -> str:
    config, chip = plan.config, plan.topology.chip
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    count = config.gradient_accumulation_steps
    micro_batches = f"{count} micro-batch" + "es" * (count > 1)
    run = (
        f"{config.name}, {config.model.fusion}, {config.dtype}: {config.batch_size:,} "
        f"images a step in {micro_batches}; remat {config.execution.encoder.remat} (encoder), "
        f"{config.execution.decoder.remat} (decoder)"
    )
    machine = (
        f"{plan.topology.name}: {plan.chips} chips, mesh {mesh}; {plan.images_per_chip} images on "
        f"a chip at a time; compiled in {plan.compiled.seconds:.0f} s"
    )
    lines = [run, machine]
    if chip.peak_flops:
        line = (
            f"{chip.name}, by its data sheet: {chip.peak_flops / 1e12:.0f} TFLOP/s "
            f"bfloat16, {chip.hbm_bytes / GIB:.1f} GiB"
        )
        if chip.link_bandwidth:
            line += (
                f" at {chip.hbm_bandwidth / 1e9:,.0f} GB/s, links of "
                f"{chip.link_bandwidth / 1e9:.0f} GB/s each way "
                f"({chip.links(plan.topology.shape)} at a corner of this slice)"
            )
        else:
            line += "; compiled for a CPU, in float32: temporaries are an upper bound"
        lines.append(line)
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    state, memory = plan.state, plan.compiled.memory
    rows = [
        ("parameters, float32", state.parameters),
        ("optimizer's moments, float32", state.moments),
        ("batch, all micro-batches", state.batch),
    ]
    # The compiler refused it, and gave one figure for all.
    if memory is None:
        rows.append(("all that the compiler counts", plan.needed))
    else:
        rows += [
            ("padding, less unused arguments", memory.arguments - state.bytes),
            ("temporaries", memory.temporaries),
            ("  gradients, float32, at the end of a step", state.trainable),
            ("other outputs", memory.outputs),
            ("program", memory.code),
            ("peak", memory.peak),
        ]
    if plan.available:
        rows.append(("a program may use", plan.available))
    # MiB for models of a test or a tutorial.
    unit, symbol = (GIB, "GiB") if plan.needed >= GIB / 10 else (2**20, "MiB")
    cells = [(name, f"{number / unit:,.3f}") for name, number in rows]
    return text_table(("memory of each chip", symbol), cells)


def _verdict(plan: Plan) -> str:
    if plan.fits is None:
        return "Whether it fits is not known: neither is the memory of the chip."
    if plan.fits:
        return (
            f"It fits, with {(plan.available - plan.needed) / GIB:,.2f} GiB to spare."
        )
    return (
        f"It does not fit: a chip would need {plan.needed / GIB:,.2f} GiB and has "
        f"{plan.available / GIB:,.2f}."
    )


def _collectives(plan: Plan) -> str:
    collectives = plan.compiled.collectives
    rows = [
        (kind, f"{c.count:,}", f"{c.bytes / 1e9:,.3f}", f"{c.received / 1e9:,.3f}")
        for kind, c in collectives.items()
    ]
    if not rows:
        return "No collectives."
    header = ("collectives of a step", "count", "arrays, GB", "received by a chip, GB")
    lines = [text_table(header, rows)]
    if plan.compiled.unknown_loops:
        lines.append(_unknown(plan))
    return "\n".join(lines)


def _unknown(plan: Plan) -> str:
    loops = plan.compiled.unknown_loops
    return (
        f"Loops whose number of rounds depends on the data count once: "
        f"{', '.join(loops)}. Counts and bytes are at least these."
    )


def _work(plan: Plan) -> str:
    rows = []
    for name, (amount, rate, seconds) in plan.limits.items():
        label, unit, symbol = _LIMITS[name]
        rows.append(
            (
                label,
                f"{amount / unit:,.1f} {symbol}",
                f"{rate / unit:,.2f} {symbol}/s",
                f"{seconds * 1e3:,.1f}",
            )
        )
    if not rows:
        return ""
    return text_table(("a step of a chip", "amount", "at most", "ms at least"), rows)


def _stage(plan: Plan) -> str:
    if plan.roofline is None:
        return ""
    slowest = max(plan.limits, key=lambda name: plan.limits[name][2])
    cases = [(f"roofline ({_LIMITS[slowest][0]})", plan.roofline)]
    # Labelled as assumptions: the only figures here that are not computed.
    for share in ASSUMED_MFU:
        cases.append((f"{share:.0%} of the peak, an assumption", plan.at_mfu(share)))
    rows = []
    for label, seconds in cases:
        if seconds is None:
            rows.append((label, "beyond the roofline", "", "", ""))
            continue
        hours = plan.hours(seconds)
        rate = plan.config.batch_size / seconds / plan.chips
        numbers = (seconds * 1e3, rate, hours, hours * plan.chips)
        rows.append((label, *(f"{number:,.2f}" for number in numbers)))
    steps = f"{plan.config.total_steps:,} steps"
    header = (steps, "ms a step", "images/s a chip", "hours", "chip-hours")
    return text_table(header, rows)


def to_dict(plan: Plan) -> dict:
    """Returns a plan as JSON values: bytes, FLOPs, seconds, hours."""
    config, chip, compiled = plan.config, plan.topology.chip, plan.compiled
    stage = {}
    if plan.roofline is not None and plan.fits is not False:
        times = {"roofline": plan.roofline}
        for share in ASSUMED_MFU:
            times[f"assumed_mfu_{share:.0%}"] = plan.at_mfu(share)
        for name, seconds in times.items():
            # None: this share of the peak is beyond the roofline.
            hours = None if seconds is None else plan.hours(seconds)
            stage[name] = {
                "step_seconds": seconds,
                "hours": hours,
                "chip_hours": hours and hours * plan.chips,
            }
    return {
        "run": {
            "name": config.name,
            "fusion": config.model.fusion,
            "dtype": config.dtype,
            "batch_size": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "rows_per_chip": plan.images_per_chip,
            "total_steps": config.total_steps,
            "remat": [config.execution.encoder.remat, config.execution.decoder.remat],
        },
        "topology": plan.topology.name,
        "chips": plan.chips,
        "chip": dataclasses.asdict(chip),
        "ici_bandwidth": plan.topology.ici_bandwidth,
        "mesh": plan.mesh,
        "state": dataclasses.asdict(plan.state),
        "compiled": dataclasses.asdict(compiled),
        "needed": plan.needed,
        "available": plan.available,
        "fits": plan.fits,
        "flops": plan.flops,
        "limits": {
            name: {"amount": amount, "rate": rate, "seconds": seconds}
            for name, (amount, rate, seconds) in plan.limits.items()
        },
        "stage": stage,
        "advice": list(advise(plan)),
    }


def plan_all(
    configs: Iterable[RunConfig], topology: Topology, out: str
) -> Iterator[Plan]:
    """Yields a plan of each run, with as many micro-batches as it takes to fit.

    Args:
      configs: runs to plan.
      topology: machine to plan for.
      out: JSON file that has all plans so far whenever one is yielded; empty for none.
    """
    plans = []
    for config in configs:
        plan = make_plan(config, topology)
        for _ in range(_ATTEMPTS - 1):
            micro_batches = accumulate_that_fits(plan) if plan.fits is False else None
            # Nothing left to try: it fits, or no number of micro-batches would.
            if (
                micro_batches is None
                or micro_batches == plan.config.gradient_accumulation_steps
            ):
                break
            config = dataclasses.replace(
                config, gradient_accumulation_steps=micro_batches
            )
            plan = make_plan(config, topology)
        plans.append(plan)
        # After each plan: compiling all of them takes long, and may be stopped.
        if out:
            io.write_json(out, [to_dict(plan) for plan in plans])
        yield plan


def require_writable(path: str) -> None:
    """Checks that a file can be written. Raises OutputError otherwise."""
    io.require_writable(as_path(path).parent)
    # A folder of that name would fail at the end, after all plans are made.
    if io.is_folder(path):
        raise OutputError(f"cannot write {path}: it is a folder; expected a file")


def markdown(plans: list[Plan]) -> str:
    """Formats a Markdown table with a row for each plan."""
    header = (
        "run",
        "fusion",
        "micro-batches",
        "images on a chip",
        "GiB a chip",
        "fits",
        "TFLOP a chip",
        "roofline, ms a step",
        "limit",
        "hours",
        f"hours at {ASSUMED_MFU[-1]:.0%} of the peak (assumed)",
    )
    rows = [header, ("---",) * len(header), *map(_row, plans)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(plan: Plan) -> tuple[str, ...]:
    config = plan.config
    known = plan.roofline is not None and plan.fits is not False
    # A program that does not fit has no roofline to name a limit of.
    slowest = max(plan.limits, key=lambda n: plan.limits[n][2]) if known else ""
    assumed = plan.at_mfu(ASSUMED_MFU[-1]) if known else None
    return (
        config.name,
        config.model.fusion,
        str(config.gradient_accumulation_steps),
        str(plan.images_per_chip),
        f"{plan.needed / GIB:.2f}",
        {True: "yes", False: "no", None: "?"}[plan.fits],
        "" if plan.flops is None else f"{plan.flops / plan.chips / 1e12:.1f}",
        f"{plan.roofline * 1e3:.0f}" if known else "",
        slowest,
        f"{plan.hours(plan.roofline):.2f}" if known else "",
        "" if assumed is None else f"{plan.hours(assumed):.2f}",
    )
