"""What commands show: log lines, a progress bar, text tables, errors as messages."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from hive_jax.errors import ConfigError, HiveError


def log(line: str) -> None:
    """Prints a line from process 0, above the progress bar if there is one."""
    if _is_first_process():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def progress_bar(name: str, total: int, step: int = 0) -> tqdm:
    """A progress bar on process 0 in a terminal; silent elsewhere.

    Args:
      name: text before the bar.
      total: steps of the whole work.
      step: steps done already.
    """
    quiet = not _is_first_process() or not sys.stderr.isatty()
    return tqdm(desc=name, total=total, initial=step, disable=quiet, dynamic_ncols=True)


def text_table(header: Sequence, rows: Sequence[Sequence]) -> str:
    """Aligned text columns, the first to the left and the others to the right.

    Args:
      header: titles of the columns.
      rows: cells of each row; shown with str().
    """
    cells = [tuple(str(cell) for cell in row) for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def report_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorates a command: a HiveError is printed, and its exit code returned."""

    @functools.wraps(main)
    def reported(*arguments) -> int:
        try:
            return main(*arguments)
        except HiveError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code

    return reported


def parse_named_paths(
    arguments: Sequence[str],
    default_name: Callable[[str], str] = lambda path: Path(path).name,
) -> dict[str, list[str]]:
    """Groups NAME=PATH arguments by name; a name may have several paths.

    Args:
      arguments: each NAME=PATH, or PATH alone.
      default_name: path -> the name of a PATH alone.

    Raises:
      ConfigError: a name or a path is empty.
    """
    paths = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals:
            name, path = default_name(argument), argument
        if not name or not path:
            raise ConfigError(f"{argument!r}; expected NAME=PATH")
        paths.setdefault(name, []).append(path)
    return paths


def parse_unique_paths(
    arguments: Sequence[str],
    default_name: Callable[[str], str] = lambda path: Path(path).name,
) -> dict[str, str]:
    """NAME=PATH arguments, name -> path; as `parse_named_paths`.

    Raises:
      ConfigError: a name or a path is empty, or a name has several paths.
    """
    named = parse_named_paths(arguments, default_name)
    for name, paths in named.items():
        if len(paths) > 1:
            raise ConfigError(
                f"{name!r} names {' and '.join(paths)}; expected a name for each, as "
                "in hive=PATH cascaded=PATH"
            )
    return {name: path for name, (path,) in named.items()}


def _is_first_process() -> bool:
    import jax  # here, so that --help need not wait for it

    return jax.process_index() == 0
