"""What a broken file is, among all that can go wrong when a checkpoint is read."""

import contextlib
import sys
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.errors import CheckpointError

# Words of errors that say nothing about the checkpoint: it may be fine tomorrow.
_TRANSIENT = (
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
)


class DamagedError(Exception):
    """A step whose files cannot be read, or read to other values than were saved."""


@contextlib.contextmanager
def reading(names: Iterable[str] = ()):
    """Turns errors of reading into DamagedError, on all processes alike.

    Orbax and TensorStore raise whatever the broken byte leads to (KeyError,
    JSONDecodeError, ValueError, ...), so all is damage except what is known not to be.

    Args:
      names: leaves that are read, to name those that the error is about.

    Raises:
      DamagedError: the files are damaged, as seen by any of the processes.
      CheckpointError: they cannot be read now, which says nothing about them.
    """
    problem = None
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        unreadable = isinstance(error, OSError) and not isinstance(
            error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)
        )
        if unreadable or any(word in str(error) for word in _TRANSIENT):
            raise CheckpointError(
                f"a checkpoint cannot be read now: {first_line(error)}. "
                "This does not look like damage; try again."
            ) from error
        leaves = ", ".join(name for name in names if _mentions(error, name))
        problem = f"{leaves or type(error).__name__}: {first_line(error)}"
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(problem is not None))
        if failed.any() and problem is None:
            problem = f"unreadable on processes {np.flatnonzero(failed).tolist()}"
    if problem is not None:
        raise DamagedError(problem)


@contextlib.contextmanager
def quiet_leftovers():
    """Drops the complaints of reads that Orbax abandons when one of them fails.

    They come when the abandoned coroutines are collected, some 60 lines each, so
    collect them (`gc.collect`) before leaving this context.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def ignore_closed_loops() -> None:
    """Drops the complaints of writes that were under way when another one failed.

    They come from threads of TensorStore, six lines for each write, at any time after
    Orbax has raised the failure itself.
    """
    hook = sys.unraisablehook

    def filtered(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = filtered


def _mentions(error: Exception, name: str) -> bool:
    """Whether TensorStore's message is about this leaf: `"img.kernel/0.0"`."""
    stored = name.removeprefix("params/").replace("/", ".") + "/"
    return f'"{stored}' in str(error) or f"'{stored}" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of a message, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
