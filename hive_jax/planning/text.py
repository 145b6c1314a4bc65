"""A plan as text: tables with units, then what to change."""

from hive_jax.console import text_table
from hive_jax.planning.chips import GIB
from hive_jax.planning.plan import ASSUMED_MFU, Plan

_LIMITS = {
    "compute": ("matrix products", 1e12, "TFLOP"),
    "memory": ("memory traffic", 1e9, "GB"),
    "interconnect": ("received over the links", 1e9, "GB"),
}


def describe(plan: Plan) -> str:
    """All of a plan."""
    parts = [_head(plan), _memory(plan), _verdict(plan)]
    if plan.compiled.memory is not None:
        parts += [_collectives(plan), _work(plan), _stage(plan)]
    if plan.advice:
        parts.append("\n".join(f"- {line}" for line in plan.advice))
    return "\n\n".join(filter(None, parts))


def _head(plan: Plan) -> str:
    config, chip = plan.config, plan.topology.chip
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    parts = f"{config.gradient_accumulation_steps} part" + "s" * (
        config.gradient_accumulation_steps > 1
    )
    run = (
        f"{config.name}, {config.model.fusion}, {config.dtype}: {config.batch_size:,} "
        f"images a step in {parts}; remat {config.execution.encoder.remat} (encoder), "
        f"{config.execution.decoder.remat} (decoder)"
    )
    machine = (
        f"{plan.topology.name}: {plan.chips} chips, mesh {mesh}; {plan.rows} images on "
        f"a chip at a time; compiled in {plan.compiled.seconds:.0f} s"
    )
    lines = [run, machine]
    if chip.peak_flops:
        lines.append(
            f"{chip.name}, by its data sheet: {chip.peak_flops / 1e12:.0f} TFLOP/s "
            f"bfloat16, {chip.hbm_bytes / GIB:.0f} GiB at "
            f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s, links of "
            f"{chip.link_bandwidth / 1e9:.0f} GB/s each way "
            f"({chip.links(plan.topology.shape)} at a corner of this slice)"
        )
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    state, memory = plan.state, plan.compiled.memory
    rows = [
        ("parameters, float32", state.parameters),
        ("optimizer's moments, float32", state.moments),
        ("batch, all parts", state.batch),
    ]
    if memory is None:
        rows.append(("all that the compiler counts", plan.needed))
    else:
        rows += [
            ("padding, less what is not read", memory.arguments - state.bytes),
            ("temporaries", memory.temporaries),
            ("  gradients, float32, at the end of a step", state.trainable),
            ("outputs beside the state", memory.outputs),
            ("program", memory.code),
            ("peak", memory.peak),
        ]
    if plan.available:
        rows.append(("a program may use", plan.available))
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
    found = plan.compiled.collectives
    rows = [
        (kind, f"{c.count:,}", f"{c.bytes / 1e9:,.3f}", f"{c.received / 1e9:,.3f}")
        for kind, c in found.items()
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
