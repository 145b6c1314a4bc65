"""Plans of several runs on one machine, side by side."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from hive_jax.config import RunConfig
from hive_jax.errors import OutputError
from hive_jax.io import write_json
from hive_jax.planning.advice import accumulate_that_fits
from hive_jax.planning.chips import GIB
from hive_jax.planning.plan import ASSUMED_MFU, Plan, make_plan
from hive_jax.planning.topology import Topology

# A batch that is too large is sent through in more parts, planned at most so often.
_TRIES = 3


def plan_all(
    configs: Iterable[RunConfig], topology: Topology, out: str
) -> Iterator[Plan]:
    """A plan of each run, in as many parts as it takes to fit. All that are made so
    far are in the JSON file `out` (if it is not empty) whenever one is yielded."""
    made = []
    for config in configs:
        plan = make_plan(config, topology)
        for _ in range(_TRIES - 1):
            parts = accumulate_that_fits(plan) if plan.fits is False else None
            if parts is None or parts == plan.config.gradient_accumulation_steps:
                break
            config = dataclasses.replace(config, gradient_accumulation_steps=parts)
            plan = make_plan(config, topology)
        made.append(plan)
        if out:
            write([plan.to_dict() for plan in made], out)
        yield plan


def write(content, path: str) -> None:
    """JSON, to a file that is whole or not there.

    Raises:
      OutputError: it cannot be written.
    """
    write_json(path, content)


def require_writable(path: str) -> None:
    """Raises OutputError, before any work, if `write` could not write there."""
    with _partial(path) as partial:
        partial.write_text("", "utf-8")
        partial.unlink()
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected a file")


@contextlib.contextmanager
def _partial(path: str) -> Iterator[Path]:
    """What becomes the file at `path`, in its folder."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target.with_name(target.name + ".partial")
    except OSError as error:
        raise OutputError(f"--out {path} cannot be written: {error}") from None


def markdown(plans: list[Plan]) -> str:
    """A table with a row for each plan."""
    header = (
        "run",
        "fusion",
        "parts",
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
    slowest = max(plan.limits, key=lambda n: plan.limits[n][2]) if known else ""
    assumed = plan.at_mfu(ASSUMED_MFU[-1]) if known else None
    return (
        config.name,
        config.model.fusion,
        str(config.gradient_accumulation_steps),
        str(plan.rows),
        f"{plan.needed / GIB:.2f}",
        {True: "yes", False: "no", None: "?"}[plan.fits],
        "" if plan.flops is None else f"{plan.flops / plan.chips / 1e12:.1f}",
        f"{plan.roofline * 1e3:.0f}" if known else "",
        slowest,
        f"{plan.hours(plan.roofline):.2f}" if known else "",
        "" if assumed is None else f"{plan.hours(assumed):.2f}",
    )
