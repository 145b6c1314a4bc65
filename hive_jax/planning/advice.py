"""Advice on a plan: config values to change, derived from its numbers."""

import dataclasses
import math
from collections.abc import Iterator

from hive_jax.planning.hardware import GIB, slice_shapes
from hive_jax.planning.plan import Plan, divisors

# Share of the memory above which a plan is tight, because compiler versions differ, and
# share below which larger micro-batches are worth a suggestion.
_CLOSE, _ROOMY = 0.9, 0.6


@dataclasses.dataclass(frozen=True)
class _Budget:
    """Bytes on a chip: `static` for parameters, moments and gradients; `rest` grows
    with the size of a micro-batch."""

    available: float
    static: float
    rest: float


def advise(plan: Plan) -> Iterator[str]:
    """Yields suggestions, the one to try first coming first."""
    if plan.fits is None:
        return
    # Gradients have the size of the trainable parameters.
    static = plan.state.parameters + plan.state.moments + plan.state.trainable
    rest = max(plan.needed - static, 0.0)
    budget = _Budget(plan.available, static, rest)
    if not plan.fits:
        yield from _if_too_large(plan, budget)
    elif plan.needed > _CLOSE * plan.available:
        yield (
            f"It fits with {_gib(plan.available - plan.needed)} GiB to spare, which is "
            f"little: another version of the compiler may need more."
        )
    elif plan.needed < _ROOMY * plan.available:
        yield from _if_roomy(plan, budget)
    if plan.fits:
        yield from _if_links_limit(plan, budget)


def accumulate_that_fits(plan: Plan) -> int | None:
    """Returns the smallest number of micro-batches that fits in memory, or None."""
    static = plan.state.parameters + plan.state.moments + plan.state.trainable
    budget = _Budget(plan.available, static, max(plan.needed - static, 0.0))
    return _micro_batches(plan, budget)


def _if_too_large(plan: Plan, budget: _Budget) -> Iterator[str]:
    yield (
        f"Too large by {_gib(plan.needed - plan.available)} GiB: parameters, moments "
        f"and gradients take {_gib(budget.static)} GiB of a chip, activations and "
        f"gathered weights {_gib(budget.rest)} GiB."
    )
    for fsdp in divisors(plan.chips // plan.mesh["tensor"]):
        # More shards help only where the static bytes are a share that matters.
        if fsdp <= plan.mesh["fsdp"] or budget.static < 0.1 * budget.available:
            continue
        smaller, last = plan.static_bytes[fsdp], fsdp * 2 > plan.chips
        # The smallest size that leaves most of the memory to activations.
        if smaller < 0.8 * budget.static and (smaller < 0.3 * budget.available or last):
            yield (
                f"config.mesh.fsdp={fsdp} splits parameters, moments and gradients "
                f"further: {_gib(budget.static)} -> {_gib(smaller)} GiB of a chip."
            )
            break
    towers = _towers(plan, without="full")
    if towers:
        flags = " ".join(f"config.execution.{tower}.remat=full" for tower in towers)
        yield (
            f"{flags} keeps one residual stream for each layer, and computes the "
            f"forward pass again: a quarter to a third more work."
        )
    count = _micro_batches(plan, budget)
    if count and count > plan.config.gradient_accumulation_steps:
        yield (
            f"config.gradient_accumulation_steps={count} sends {_images_per_chip(plan, count)} images "
            f"through a chip at a time instead of {plan.images_per_chip}: about "
            f"{_gib(budget.static + budget.rest * plan.config.gradient_accumulation_steps / count)} GiB."
        )
    if larger := _more_chips(plan, budget):
        name, count = larger
        yield (
            f"topology {name} with config.mesh.fsdp={count // plan.mesh['tensor']}: "
            f"{count} chips have {count / plan.chips:.0f} times the memory."
        )


def _if_roomy(plan: Plan, budget: _Budget) -> Iterator[str]:
    config, spare = plan.config, plan.available - plan.needed
    yield (
        f"{_gib(spare)} GiB of each chip stay free "
        f"({spare / plan.available:.0%} of its memory)."
    )
    fewest = next(
        count
        for count in divisors(config.gradient_accumulation_steps)
        if count == config.gradient_accumulation_steps
        or (
            config.batch_size // count % _split(plan) == 0
            and budget.static + budget.rest * config.gradient_accumulation_steps / count
            < _CLOSE * budget.available
        )
    )
    if fewest < config.gradient_accumulation_steps:
        yield (
            f"config.gradient_accumulation_steps={fewest}: larger micro-batches, "
            f"{_images_per_chip(plan, fewest)} images on a chip at a time; about "
            f"{_gib(budget.static + budget.rest * config.gradient_accumulation_steps / fewest)} GiB."
        )
    # One policy at a time: the memory of the next one is not known before a plan.
    for policy, lighter in (("full", "dots"), ("dots", "none")):
        towers = [t for t in _towers(plan) if _remat(plan, t) == policy]
        if towers:
            flags = " ".join(f"config.execution.{t}.remat={lighter}" for t in towers)
            yield f"{flags}: less is computed twice; plan it again to see its memory."


def _if_links_limit(plan: Plan, budget: _Budget) -> Iterator[str]:
    """Advises where the interconnect determines the step time."""
    limits = plan.limits
    if "interconnect" not in limits or "compute" not in limits:
        return
    link, compute = limits["interconnect"][2], limits["compute"][2]
    # Transfers that take no longer than the products can overlap with them.
    if link <= compute:
        return
    line = (
        f"The links take longer ({link * 1e3:,.0f} ms a step) than the matrix products "
        f"({compute * 1e3:,.0f} ms)"
    )
    fewer = [
        fsdp
        for fsdp in divisors(plan.mesh["fsdp"])
        if fsdp < plan.mesh["fsdp"]
        and plan.static_bytes[fsdp] + budget.rest < _CLOSE * budget.available
    ]
    if fewer:
        line += f": config.mesh.fsdp={fewer[0]} fits too, and gathers from fewer chips"
    elif plan.config.gradient_accumulation_steps > 1:
        line += (
            ", and each micro-batch gathers the weights again: larger ones are faster"
        )
    yield line + "."


def _micro_batches(plan: Plan, budget: _Budget) -> int | None:
    config = plan.config
    for count in divisors(config.batch_size):
        # An estimate: what is not static is taken to be proportional to the
        # micro-batch.
        size = budget.static + budget.rest * config.gradient_accumulation_steps / count
        if (
            count >= config.gradient_accumulation_steps
            and config.batch_size // count % _split(plan) == 0
            and size < _CLOSE * budget.available
        ):
            return count
    return None


def _more_chips(plan: Plan, budget: _Budget) -> tuple[str, int] | None:
    """Returns the next larger slice that fits, as (topology, chips), or None."""
    chip = plan.topology.chip
    if not chip.axes:
        return None
    # As if everything were sharded over all chips, which fsdp comes close to.
    total = plan.needed * plan.chips
    for shape in slice_shapes(chip):
        count = math.prod(shape)
        micro_batch = plan.config.batch_size // plan.config.gradient_accumulation_steps
        if (
            count > plan.chips
            and total / count < _CLOSE * budget.available
            and micro_batch % (count // plan.mesh["tensor"]) == 0
        ):
            return f"{chip.name}:{'x'.join(map(str, shape))}", count
    return None


def _towers(plan: Plan, without: str = "") -> list[str]:
    """Towers that gradients pass through, which remat makes a difference to."""
    rules = plan.config.rules
    through = ["decoder"] if plan.config.objective == "caption" else []
    trains = [rule.pattern for rule in rules if rule.multiplier is not None]
    # Without a trained parameter in the encoder, no gradient passes through it.
    if any(pattern.startswith(("img", ".*")) for pattern in trains):
        through.insert(0, "encoder")
    return [tower for tower in through if _remat(plan, tower) != without]


def _remat(plan: Plan, tower: str) -> str:
    return getattr(plan.config.execution, tower).remat


def _split(plan: Plan) -> int:
    return plan.mesh["data"] * plan.mesh["fsdp"]


def _images_per_chip(plan: Plan, count: int) -> int:
    return plan.config.batch_size // count // _split(plan)


def _gib(number: float) -> str:
    return f"{number / GIB:,.2f}"
