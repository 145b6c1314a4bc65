"""Less output of libraries about failures, which `Checkpoints` reports in a line or two."""

import asyncio
import logging
import re
import sys

# Of log records: Orbax, the formats that TensorStore reads, and what writes to buckets.
_ORIGIN = re.compile("orbax|OCDBT|zarr|array_serialization|aiohttp")
_EVENT_LOOP = asyncio.BaseEventLoop.call_soon_threadsafe.__code__.co_filename


def filter_orbax_output() -> None:
    """Omits Orbax's tracebacks. Call once."""
    # Orbax logs each failure with up to hundreds of lines before raising it.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(
            lambda record: not _ORIGIN.search(record.pathname + record.getMessage())
        )
    # When one read or write fails, Orbax closes its event loop while threads of
    # TensorStore are in others, and abandons coroutines. Each prints a traceback at its
    # end.
    print_unraisable = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: (
        None if _is_abandoned(unraisable) else print_unraisable(unraisable)
    )


def _is_abandoned(unraisable) -> bool:
    """Returns whether a coroutine failed that nothing waits for any more, or a thread
    called a closed event loop from outside of Python."""
    coroutine = getattr(unraisable.object, "cr_code", None)
    if coroutine and _ORIGIN.search(coroutine.co_filename):
        return True
    frames = unraisable.exc_traceback
    from_outside = frames and frames.tb_frame.f_code.co_filename == _EVENT_LOOP
    return from_outside and str(unraisable.exc_value) == "Event loop is closed"
