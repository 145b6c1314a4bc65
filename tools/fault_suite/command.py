"""Causes faults on purpose, and counts what comes of them; see docs/reliability.md."""

import argparse
import dataclasses
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from hive_jax.console import report_errors, show, text_table
from hive_jax.errors import ConfigError
from hive_jax.io import read_json, require_writable, write_json, write_text
from tools.fault_suite.figure import Figure, markdown_table
from tools.fault_suite.micro_run import FAST_COMPILATION

_EXAMPLES = """examples:
  python tools/faults.py kill --count 20
  python tools/faults.py damage --count 1000 --out faults
  python tools/faults.py all
"""
_PACKAGES = ("jax", "orbax-checkpoint")
_RESULT = "faults.json"


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every case of every figure met its goal, else 1."""
    _configure_jax()
    # Imports JAX.
    from tools.fault_suite.suite import SUBJECTS, measure

    args = _parse(arguments, [*SUBJECTS])
    if args.count is not None and args.count < 1:
        raise ConfigError(f"count is {args.count}; expected 1 or more")
    names = [*SUBJECTS] if args.fault == "all" else [args.fault]
    out = require_writable(args.out)
    results = read_json(out / _RESULT) if (out / _RESULT).exists() else {}
    passed, rows = True, []
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or temporary)
        for name in names:
            figure = measure(name, args.count, args.workdir, cache)
            rows.append(_show(SUBJECTS[name].id, name, figure))
            results[name] = dataclasses.asdict(figure) | _about()
            passed = passed and (figure.passed or bool(figure.skipped))
            # After each figure: the next ones take minutes.
            write_json(out / _RESULT, results)
            write_text(out / "faults.md", table(results))
    show(text_table(("fault", "cases", "goal", "seconds"), rows))
    return 0 if passed else 1


def _parse(arguments: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/faults.py",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fault", choices=(*names, "all"))
    parser.add_argument(
        "--count", type=int, help="cases (default: those of the reliability page)"
    )
    parser.add_argument(
        "--workdir", default="", help="folder for runs (default: a temporary one)"
    )
    parser.add_argument(
        "--out",
        default="faults",
        help=f"folder of {_RESULT} and faults.md; figures of other faults stay "
        "(default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _configure_jax() -> None:
    """Sets what JAX reads when it is first imported: eight virtual CPU devices."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flag = "--xla_force_host_platform_device_count=8"
    os.environ.setdefault("XLA_FLAGS", f"{FAST_COMPILATION} {flag}")


def _about() -> dict[str, str | int]:
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        **{package: version(package) for package in _PACKAGES},
    }


def _show(id: str, name: str, figure: Figure) -> tuple:
    """Prints what was seen; returns the row of the figure in the table."""
    state = "skipped" if figure.skipped else "holds" if figure.passed else "MISSED"
    show(f"{id} {name}: {figure.skipped or figure.seen}")
    for line in figure.failures:
        show(f"  {line}")
    return f"{id} {name}", f"{figure.cases:,}", state, f"{figure.seconds:.0f}"


def table(results: dict) -> str:
    """Returns the figures as a table in Markdown, in the order of the goals.

    Args:
      results: name -> fields of a Figure, as in faults.json.
    """
    from tools.fault_suite.suite import SUBJECTS

    rows = []
    for name, subject in SUBJECTS.items():
        if name not in results:
            continue
        figure = results[name]
        seen = figure["skipped"] or figure["seen"]
        if figure["failures"]:
            seen = f"**missed {len(figure['failures'])} times**: {seen}"
        cases = f"{figure['cases']:,}"
        rows.append(
            (f"`{name}`", subject.fault, subject.goal, cases, seen, subject.elsewhere)
        )
    header = ("figure", "fault", "goal of every case", "cases", "seen", "elsewhere")
    return markdown_table(header, rows)
