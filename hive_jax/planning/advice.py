"""What to change in a plan: config keys with values, worked out from its numbers."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from hive_jax.planning.chips import GIB
from hive_jax.planning.topology import shapes

# A plan is close to the limit, or has room to spare, by these shares of the memory.
_CLOSE, _ROOMY = 0.9, 0.6


@dataclasses.dataclass(frozen=True)
class _Budget:
    """Bytes on a chip. Static is what no smaller part of a batch makes smaller:
    parameters, moments and gradients. The rest grows with the rows of a part."""

    available: float
    static: float
    rest: float


def advise(plan, state_bytes: Callable[[int], float]) -> Iterator[str]:
    """Lines for a Plan, the first to be tried first.

    Args:
      plan: a Plan.
      state_bytes: fsdp -> bytes of parameters, moments and gradients on each chip.
    """
    if plan.fits is None:
        return
    static = plan.state.parameters + plan.state.moments + plan.state.trainable
    rest = max(plan.needed - static, 0.0)
    budget = _Budget(plan.available, static, rest)
    if not plan.fits:
        yield from _smaller(plan, budget, state_bytes)
    elif plan.needed > _CLOSE * plan.available:
        yield (
            f"It fits with {_gib(plan.available - plan.needed)} GiB to spare, which is "
            f"little: another version of the compiler may need more."
        )
    elif plan.needed < _ROOMY * plan.available:
        yield from _larger(plan, budget)
    if plan.fits:
        yield from _slow_links(plan, budget, state_bytes)


def accumulate_that_fits(plan) -> int | None:
    """The fewest parts, if what grows with the rows of a part is the trouble; None if
    no number of parts would do."""
    static = plan.state.parameters + plan.state.moments + plan.state.trainable
    budget = _Budget(plan.available, static, max(plan.needed - static, 0.0))
    return _parts(plan, budget)


def _smaller(plan, budget: _Budget, state_bytes) -> Iterator[str]:
    yield (
        f"Too large by {_gib(plan.needed - plan.available)} GiB: parameters, moments "
        f"and gradients take {_gib(budget.static)} GiB of a chip, activations and "
        f"gathered weights {_gib(budget.rest)} GiB."
    )
    for fsdp in _divisors(plan.chips // plan.mesh["tensor"]):
        if fsdp <= plan.mesh["fsdp"] or budget.static < 0.1 * budget.available:
            continue
        smaller, last = state_bytes(fsdp), fsdp * 2 > plan.chips
        if smaller < 0.8 * budget.static and (smaller < 0.3 * budget.available or last):
            yield (
                f"--config.mesh.fsdp={fsdp} splits parameters, moments and gradients "
                f"further: {_gib(budget.static)} -> {_gib(smaller)} GiB of a chip."
            )
            break
    towers = _towers(plan, without="full")
    if towers:
        flags = " ".join(f"--config.execution.{tower}.remat=full" for tower in towers)
        yield (
            f"{flags} keeps one residual stream for each layer, and computes the "
            f"forward pass again: a quarter to a third more work."
        )
    parts = _parts(plan, budget)
    if parts and parts > plan.config.gradient_accumulation_steps:
        yield (
            f"--config.gradient_accumulation_steps={parts} sends {_part_rows(plan, parts)} images "
            f"through a chip at a time instead of {plan.rows}: about "
            f"{_gib(budget.static + budget.rest * plan.config.gradient_accumulation_steps / parts)} GiB."
        )
    if larger := _more_chips(plan, budget):
        name, count = larger
        yield (
            f"--topology {name} --config.mesh.fsdp={count // plan.mesh['tensor']}: "
            f"{count} chips have {count / plan.chips:.0f} times the memory."
        )


def _larger(plan, budget: _Budget) -> Iterator[str]:
    config, spare = plan.config, plan.available - plan.needed
    yield (
        f"{_gib(spare)} GiB of each chip stay free "
        f"({spare / plan.available:.0%} of its memory)."
    )
    fewest = next(
        parts
        for parts in _divisors(config.gradient_accumulation_steps)
        if parts == config.gradient_accumulation_steps
        or (
            config.batch_size // parts % _split(plan) == 0
            and budget.static + budget.rest * config.gradient_accumulation_steps / parts
            < _CLOSE * budget.available
        )
    )
    if fewest < config.gradient_accumulation_steps:
        yield (
            f"--config.gradient_accumulation_steps={fewest}: larger parts, "
            f"{_part_rows(plan, fewest)} images on a chip at a time; about "
            f"{_gib(budget.static + budget.rest * config.gradient_accumulation_steps / fewest)} GiB."
        )
    for policy, lighter in (("full", "dots"), ("dots", "none")):
        towers = [t for t in _towers(plan) if _remat(plan, t) == policy]
        if towers:
            flags = " ".join(f"--config.execution.{t}.remat={lighter}" for t in towers)
            yield f"{flags}: less is computed twice; plan it again to see its memory."


def _slow_links(plan, budget: _Budget, state_bytes) -> Iterator[str]:
    """Where the links decide how long a step takes."""
    limits = plan.limits
    if "interconnect" not in limits or "compute" not in limits:
        return
    link, compute = limits["interconnect"][2], limits["compute"][2]
    if link <= compute:
        return
    line = (
        f"The links take longer ({link * 1e3:,.0f} ms a step) than the matrix products "
        f"({compute * 1e3:,.0f} ms)"
    )
    fewer = [
        fsdp
        for fsdp in _divisors(plan.mesh["fsdp"])
        if fsdp < plan.mesh["fsdp"]
        and state_bytes(fsdp) + budget.rest < _CLOSE * budget.available
    ]
    if fewer:
        line += (
            f": --config.mesh.fsdp={fewer[0]} fits too, and gathers from fewer chips"
        )
    elif plan.config.gradient_accumulation_steps > 1:
        line += ", and each part gathers the weights again: larger parts are faster"
    yield line + "."


def _parts(plan, budget: _Budget) -> int | None:
    config = plan.config
    for parts in _divisors(config.batch_size):
        size = budget.static + budget.rest * config.gradient_accumulation_steps / parts
        if (
            parts >= config.gradient_accumulation_steps
            and config.batch_size // parts % _split(plan) == 0
            and size < _CLOSE * budget.available
        ):
            return parts
    return None


def _more_chips(plan, budget: _Budget) -> tuple[str, int] | None:
    """The next slices of the chip, by the memory that all chips need together."""
    chip = plan.topology.chip
    if not chip.axes:
        return None
    total = plan.needed * plan.chips
    for shape in shapes(chip):
        count = math.prod(shape)
        part = plan.config.batch_size // plan.config.gradient_accumulation_steps
        if (
            count > plan.chips
            and total / count < _CLOSE * budget.available
            and part % (count // plan.mesh["tensor"]) == 0
        ):
            return f"{chip.name}:{'x'.join(map(str, shape))}", count
    return None


def _towers(plan, without: str = "") -> list[str]:
    """Towers that gradients pass through, which remat makes a difference to."""
    rules = plan.config.rules
    through = ["decoder"] if plan.config.objective == "caption" else []
    trains = [rule.pattern for rule in rules if rule.multiplier is not None]
    if any(pattern.startswith(("img", ".*")) for pattern in trains):
        through.insert(0, "encoder")
    return [tower for tower in through if _remat(plan, tower) != without]


def _remat(plan, tower: str) -> str:
    return getattr(plan.config.execution, tower).remat


def _split(plan) -> int:
    return plan.mesh["data"] * plan.mesh["fsdp"]


def _part_rows(plan, parts: int) -> int:
    return plan.config.batch_size // parts // _split(plan)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _gib(number: float) -> str:
    return f"{number / GIB:,.2f}"
