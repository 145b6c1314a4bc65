"""Times the phases of a process, and says when one takes too long."""

import time
from collections import Counter

from hive_jax.training.run_timing import RunTiming

# The first phase of a name builds connections and caches. The second is the first of the
# usual length: the first interval between two readings of metrics is a single step.
_UNTIMED = 2
# Of an untimed phase, in `hang_timeout`s: 20 minutes by default, for programs to compile
# and weights and texts to be read.
_UNTIMED_FACTOR = 60
_TIMED_FACTOR = 3


class PhaseClock:
    """The current phase of this process, and how long earlier ones took.

    Attributes:
      hang_timeout: seconds; see RunConfig.
      timing: of all phases.
    """

    def __init__(self):
        self.hang_timeout = 20.0
        self.timing = RunTiming(time.monotonic())
        # One tuple, because another thread reads it: (phase, its start, phases before).
        self._current = ("start-up", time.monotonic(), 0)
        self._longest, self._times = {}, Counter()

    @property
    def phase(self) -> str:
        """Name of the current phase."""
        return self._current[0]

    def enter(self, phase: str) -> None:
        """Ends the current phase and begins the next one.

        Args:
          phase: its name, in words that fit "no progress in ...".
        """
        last, since, count = self._current
        now = time.monotonic()
        if self._times[last]:  # not the first, which is no measure of the rest
            self._longest[last] = max(self._longest.get(last, 0.0), now - since)
        self._times[last] += 1
        self.timing.end_phase(last)
        self._current = (phase, now, count + 1)

    def progress(self) -> dict:
        """Returns "count" of phases entered, "phase", and "overdue": in words that it
        takes too long, else None."""
        phase, since, count = self._current
        seconds = time.monotonic() - since
        limit = max(self.hang_timeout, _TIMED_FACTOR * self._longest.get(phase, 0.0))
        if self._times[phase] < _UNTIMED:
            limit = self.hang_timeout * _UNTIMED_FACTOR
        overdue = None
        if seconds > limit:
            overdue = (
                f"no progress in {phase} for {seconds:.0f} s (config.hang_timeout)"
            )
        return {"count": count, "phase": phase, "overdue": overdue}
