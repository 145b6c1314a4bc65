"""Less output of libraries about failures, which `Checkpoints` reports in a line or two."""

import asyncio
import logging
import sys

# Of Orbax, and of what writes to buckets: JAX's array serialization and the clients.
_OMITTED = ("orbax", "array_serialization", "aiohttp")
_EVENT_LOOP = asyncio.BaseEventLoop.call_soon_threadsafe.__code__.co_filename


def filter_orbax_output() -> None:
    """Omits Orbax's tracebacks. Call once."""
    # Orbax logs each failure with up to hundreds of lines before raising it.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(
            lambda record: (
                not any(
                    name in record.pathname + record.getMessage() for name in _OMITTED
                )
            )
        )
    # When one write fails, Orbax closes its event loop while threads of TensorStore are
    # in others. Each of them prints a traceback at its end.
    print_unraisable = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: (
        None if _is_abandoned_write(unraisable) else print_unraisable(unraisable)
    )


def _is_abandoned_write(unraisable) -> bool:
    """Returns whether a thread called a closed event loop from outside of Python."""
    frames = unraisable.exc_traceback
    from_outside = frames and frames.tb_frame.f_code.co_filename == _EVENT_LOOP
    return from_outside and str(unraisable.exc_value) == "Event loop is closed"
