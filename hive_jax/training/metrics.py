"""Writes the metrics of a run (JSON Lines, TensorBoard), and measures its rates."""

import contextlib
import json
import time
from pathlib import Path
from typing import Self

import jax

from hive_jax.console import log
from hive_jax.io import write_text


class MetricsWriter:
    """Context manager that appends metrics to workdir/metrics.jsonl, one JSON object a
    line, and to workdir/tensorboard. Only process 0 writes.

    Removes the lines of steps after `step`, left by a run that was killed after its
    last checkpoint, so that each step is in the file once. A full disk costs the
    metrics of these steps and one warning, not the training.

    Args:
      workdir: folder of the run, which must exist.
      step: step that the run starts from.
    """

    def __init__(self, workdir: Path, step: int):
        self._file = self._board = None
        self._failed = False
        if jax.process_index() != 0:
            return
        path = workdir / "metrics.jsonl"
        _drop_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        # An optional dependency: metrics.jsonl has the same values.
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            log("no TensorBoard files: pip install tensorboardX")
        else:
            board = str(workdir / "tensorboard")
            # The counterpart of _drop_after: later steps are hidden.
            self._board = SummaryWriter(board, purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends the metrics of a step; a failure is logged once and ignored.

        Args:
          step: number of updates done.
          values: name -> value.
        """
        try:
            if self._file:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()  # visible at once, and safe from a kill
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            if not self._failed:
                log(f"step {step}: metrics cannot be written: {error}")
            self._failed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused_exception) -> None:
        for writer in (self._file, self._board):
            if writer:
                with contextlib.suppress(OSError):  # closing flushes the buffer
                    writer.close()


def _drop_after(path: Path, step: int) -> None:
    """Removes the lines of later steps, and a last line that a kill cut short."""
    if not path.exists():
        return
    # The resumed run writes the lines of later steps again.
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except ValueError:  # not JSON
            continue
    write_text(path, "".join(lines))


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
