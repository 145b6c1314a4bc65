"""Where the time of a run goes: timing.json, and one line at its end."""

import threading
import time
from collections.abc import Callable

import jax

# Phases of the watchdog -> names in timing.json. What compiles within a phase is counted
# as "tracing" and "compiling" instead.
_NAMES = {
    "start-up": "imports",
    "the config": "config",
    "opening the data": "data",
    "reading the weights": "weights",
    "the first batch": "first_batch",
    "waiting for data": "waiting",
    "the train step": "steps",
    "reading the metrics": "steps",
    "the start of the validation": "validation",
    "a validation batch": "validation",
    "reading the validation losses": "validation",
    "the save": "saving",
    "the last save": "saving",
    "the end": "report",
    "the result": "report",
}
# Durations that JAX reports: from Python to a jaxpr, from that to StableHLO, and XLA's
# compilation or the reading of a compiled program.
_COMPILATION = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "tracing",
    "/jax/core/compile/backend_compile_duration": "compiling",
}


class RunTiming:
    """Adds up the seconds of each phase; see `timings`.

    Args:
      began: `time.monotonic()` at the start of the first phase, "start-up".
    """

    def __init__(self, began: float):
        self._began = self._since = began
        self._seconds = {}
        self._compiled = 0.0  # within the current phase
        self._nested = []  # (start, seconds) of finished events, to tell nested ones
        self._first_step = None

    def end_phase(self, phase: str) -> None:
        """Adds the time since the last phase to that of `phase`."""
        now = time.monotonic()
        name = (
            "compiling"
            if phase.startswith("compilation ")
            else _NAMES.get(phase, phase)
        )
        self._add(name, now - self._since - self._compiled)
        self._since, self._compiled = now, 0.0

    def end_compilation(self, name: str, seconds: float) -> None:
        """Adds a duration that ends now; durations within it are not counted twice.

        Args:
          name: "tracing" or "compiling".
          seconds: its length.
        """
        start = time.monotonic() - seconds
        inner = 0.0
        while self._nested and self._nested[-1][0] >= start:
            inner += self._nested.pop()[1]
        self._nested.append((start, seconds))
        self._add(name, seconds - inner)
        self._compiled += seconds - inner

    def end_first_step(self) -> None:
        """Notes that the first step of this start has ended."""
        self._first_step = time.monotonic() - self._began

    def summary(self) -> dict:
        """Returns "total", "first_step" (None if there was none), and "seconds" by name,
        which add up to the total."""
        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        first_step = self._first_step and round(self._first_step, 3)
        total = round(self._since - self._began, 3)
        return {"total": total, "first_step": first_step, "seconds": seconds}

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def summary_line(summary: dict) -> str:
    """Returns a line of text with the times of `RunTiming.summary`, the longest first."""
    parts = sorted(summary["seconds"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {value:.1f}" for name, value in parts if value >= 0.05)
    return f"{summary['total']:.1f} s: {listed}"


def listen_to_compilations(end_compilation: Callable[[str, float], None]) -> None:
    """Calls `end_compilation(name, seconds)` after each compilation in the main thread,
    for the rest of the process."""

    def listener(event: str, seconds: float, **unused) -> None:
        name = _COMPILATION.get(event)
        if name and threading.current_thread() is threading.main_thread():
            end_compilation(name, seconds)

    jax.monitoring.register_event_duration_secs_listener(listener)
