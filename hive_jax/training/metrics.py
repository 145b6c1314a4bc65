"""Writes the metrics of a run (JSON Lines, TensorBoard), and measures its rates."""

import time

import jax

from hive_jax.console import log
from hive_jax.errors import OutputError
from hive_jax.json_text import json_lines
from hive_jax.log_file import LogFile, read_records
from hive_jax.training.event_file import EventFile


class MetricsWriter:
    """Appends metrics to workdir/metrics.jsonl, one JSON object a line, and to
    workdir/tensorboard. Only process 0 writes.

    Removes the lines of steps after `step`, left by a run that was killed after its
    last checkpoint, so that each step is in the file once. A full disk costs the
    metrics of these steps and one warning, not the training.

    Args:
      workdir: path of the run's folder, which must exist.
      step: step that the run starts from.

    Raises:
      OutputError: the files cannot be written.
    """

    def __init__(self, workdir, step: int):
        self._failed = False
        if jax.process_index() == 0:
            self._lines = LogFile(workdir / "metrics.jsonl")
            _drop_after(self._lines, step)
            # The counterpart of _drop_after: TensorBoard drops later steps.
            self._events = EventFile(workdir / "tensorboard", step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends the metrics of a step; a failure is logged once and ignored.

        Args:
          step: number of updates done.
          values: name -> value.
        """
        if jax.process_index() != 0:
            return
        try:
            # Written through at once: visible, and safe from a kill.
            line = json_lines([{"step": step, **values}])
            self._lines.append(line.encode())
            self._events.write(step, values)
        except OutputError as error:
            if not self._failed:
                log(f"step {step}: metrics are lost until this can be written: {error}")
            self._failed = True


def _drop_after(lines: LogFile, step: int) -> None:
    """Removes the lines of later steps, and lines that are not metrics."""
    # The resumed run writes the lines of later steps again.
    records, damaged = read_records(
        lines.path, lambda line: type(line.get("step")) is int
    )
    if damaged:
        log(f"{lines.path}: {damaged} unreadable lines removed")
    if lines.path.exists():
        kept = [record for record in records if record["step"] <= step]
        lines.replace(json_lines(kept).encode())


class Throughput:
    """Measures rates between readings, without validation and compilation.

    Args:
      batch_size: images an optimizer step.
      peak_flops: FLOP/s of all devices; None for no MFU.
    """

    def __init__(self, batch_size: int, peak_flops: float | None = None):
        self._batch_size = batch_size
        self._peak_flops = peak_flops
        self._step = None
        self._idle = 0.0
        self._flops = 0.0

    def waited(self, seconds: float, running) -> None:
        """Adds a wait for data, if the device was idle at its end.

        Args:
          seconds: duration of the wait.
          running: results of the previous step, on the device; None before the first.
        """
        # If they are not ready now, the device was busy during all of the wait.
        if all(leaf.is_ready() for leaf in jax.tree.leaves(running)):
            self._idle += seconds

    def count_flops(self, flops: float | None) -> None:
        """Adds the model FLOPs of a step; None if they are unknown."""
        self._flops += flops or 0.0

    def restart(self, step: int) -> None:
        """Starts a new interval after `step`, e.g. after a validation."""
        self._step = step
        self._began = time.perf_counter()
        self._idle = 0.0
        self._flops = 0.0

    def since_last(self, step: int) -> dict[str, float]:
        """Returns the rates of the steps since the last reading, and restarts.

        Returns:
          images_per_second; data_wait, the fraction of time that the device was idle
          for want of data; and mfu, model FLOPs utilization: counted FLOPs / (time x
          peak FLOP/s) (PaLM, arXiv 2204.02311, appendix B). Empty at the first
          reading, because that step includes the compilation.
        """
        # No interval has ended: the first step includes the compilation.
        if self._step is None or step == self._step:
            self.restart(step)
            return {}
        seconds = time.perf_counter() - self._began
        images = (step - self._step) * self._batch_size  # of all devices
        rates = {
            "images_per_second": images / seconds,
            "data_wait": self._idle / seconds,
        }
        if self._peak_flops and self._flops:
            rates["mfu"] = self._flops / seconds / self._peak_flops
        self.restart(step)
        return rates
