"""Console output of commands: log lines, progress bar, text tables, error messages.

Everything that is printed goes through `printable`: names and texts in data may hold
sequences that clear a terminal, set its title, or show text in another order.
"""

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from hive_jax.errors import ConfigError, HiveError

# Control characters (C0 except tab and newline, DEL, C1), line separators, marks and
# overrides of the text direction, and lone surrogates, which do not encode as UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)


def printable(text: object) -> str:
    """Returns the text with control characters as escapes, such as "\\x1b".

    Tabs and newlines stay.
    """
    return _UNPRINTABLE.sub(
        lambda match: match[0].encode("unicode_escape").decode(), str(text)
    )


def show(text: object = "", end: str = "\n") -> None:
    """Prints the result of a command.

    Args:
      text: formatted by str().
      end: printed after it.
    """
    print(printable(text), end=end, flush=True)


def show_error(error: object) -> None:
    """Prints "error: " and a message on stderr; it is lost if stderr is on a full disk.

    Args:
      error: formatted by str().
    """
    with contextlib.suppress(OSError):
        print(printable(f"error: {error}"), file=sys.stderr, flush=True)


def log(line: str) -> None:
    """Prints a line on process 0, above the progress bar if there is one.

    The line is lost if stdout is a file on a full disk, or a closed pipe: no reason to
    end a training.
    """
    if _is_first_process():
        with contextlib.suppress(OSError):
            tqdm.write(printable(line), file=sys.stdout)
            sys.stdout.flush()


def progress_bar(name: str, total: int, step: int = 0) -> tqdm:
    """Returns a progress bar, shown on process 0 in a terminal only.

    Args:
      name: text before the bar.
      total: number of steps.
      step: steps already done.
    """
    quiet = not _is_first_process() or not sys.stderr.isatty()
    name = printable(name)
    return tqdm(desc=name, total=total, initial=step, disable=quiet, dynamic_ncols=True)


def text_table(header: Sequence, rows: Sequence[Sequence]) -> str:
    """Returns a table as text, its first column left-aligned and the others right.

    Args:
      header: titles of the columns.
      rows: cells of each row, formatted by str().
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
    """Decorates a command: prints warnings, and a HiveError, whose exit code it
    returns."""

    @functools.wraps(main)
    def reported(*arguments) -> int:
        logger = logging.getLogger("hive_jax")
        handler = _PrintableHandler()
        logger.addHandler(handler)
        # Libraries give the root logger a handler, which would print them again, raw.
        propagate, logger.propagate = logger.propagate, False
        try:
            code = main(*arguments)
        except HiveError as error:
            code = error.exit_code
            show_error(error)
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate
        _drop_unwritable_output()
        return code

    return reported


def _drop_unwritable_output() -> None:
    """Drops buffered output that cannot be written: Python would try again at exit, and
    change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _PrintableHandler(logging.Handler):
    """Prints log records of the package on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr)


def parse_named_paths(
    arguments: Sequence[str],
    default_name: Callable[[str], str] = lambda path: Path(path).name,
) -> dict[str, list[str]]:
    """Parses NAME=PATH arguments; returns name -> paths, for a name may repeat.

    Args:
      arguments: each NAME=PATH or PATH. An existing path, and one with a slash before
        its "=", is a PATH.
      default_name: returns the name of a PATH alone; by default its last component.

    Raises:
      ConfigError: a name or a path is empty.
    """
    paths = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or "/" in name or os.path.exists(argument):
            name, path = default_name(argument), argument
        if not name or not path:
            raise ConfigError(f"{argument!r}; expected NAME=PATH")
        paths.setdefault(name, []).append(path)
    return paths


def parse_unique_paths(
    arguments: Sequence[str],
    default_name: Callable[[str], str] = lambda path: Path(path).name,
) -> dict[str, str]:
    """Parses NAME=PATH arguments; returns name -> path.

    Args:
      arguments: as for `parse_named_paths`.
      default_name: as for `parse_named_paths`.

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
    import jax  # here, because importing it would delay --help

    return jax.process_index() == 0
