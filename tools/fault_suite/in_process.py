"""Commands called in this process, where a start of Python for each would take too long."""

import contextlib
import io
import traceback
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

from hive_jax.training import experiment
from hive_jax.training.train_step import Program


@contextlib.contextmanager
def shared_programs() -> Iterator[dict[tuple, Program]]:
    """Context manager in which runs of equal configs share one compiled program.

    Yields the programs by their arguments, filled as runs start.
    """
    programs = {}

    def make(*arguments) -> Program:
        if arguments not in programs:
            programs[arguments] = Program(*arguments)
        return programs[arguments]

    with mock.patch.object(experiment, "Program", make):
        yield programs


def call(main: Callable, arguments: Sequence[str]) -> tuple[int | None, str]:
    """Returns the exit code and the output of a command, as its process would have them.

    Args:
      main: of the command.
      arguments: without the name of the program.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(list(arguments))
        except SystemExit as error:
            code = error.code
        except Exception:  # noqa: BLE001 - a process would print it and end with 1
            traceback.print_exc(file=output)
            code = 1
    return code, output.getvalue()
