"""Where the numbers of a run go: metrics.jsonl, TensorBoard files, rates."""

import contextlib
import json
import time
from pathlib import Path
from typing import Self

import jax

from hive_jax.console import log
from hive_jax.io import write_text


class MetricsWriter:
    """Appends one JSON object a line to workdir/metrics.jsonl, and the same numbers
    to workdir/tensorboard; a context manager. Only process 0 writes.

    Lines of steps after `step`, left by a run that was killed after its last
    checkpoint, are removed: each step is in the file once. A disk that is full costs
    the numbers of these steps and one warning, not the training.
    """

    def __init__(self, workdir: Path, step: int):
        self._file = self._board = None
        self._failed = False
        if jax.process_index() != 0:
            return
        path = workdir / "metrics.jsonl"
        _drop_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            log("no TensorBoard files: pip install tensorboardX")
        else:
            board = str(workdir / "tensorboard")
            self._board = SummaryWriter(board, purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        try:
            if self._file:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
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
                with contextlib.suppress(OSError):  # what is left in its buffer
                    writer.close()


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # the line that the kill cut short
            continue
    write_text(path, "".join(kept))


class Throughput:
    """Rates since the last reading; validation and compilation do not count."""

    def __init__(self, batch_size: int, peak_flops: float | None = None):
        """`peak_flops`: FLOP/s of all devices; None where MFU is not logged."""
        self._batch_size = batch_size
        self._peak_flops = peak_flops
        self._step = None
        self._idle = 0.0
        self._flops = 0.0

    def waited(self, seconds: float, running) -> None:
        """Counts the wait for a batch, unless the device was busy through all of it.

        Args:
          running: results of the step before, on the device; None before the first.
        """
        if all(leaf.is_ready() for leaf in jax.tree.leaves(running)):
            self._idle += seconds

    def count_flops(self, flops: float | None) -> None:
        """Adds the model FLOPs of a step; None if they are not known."""
        self._flops += flops or 0.0

    def restart(self, step: int) -> None:
        self._step = step
        self._began = time.perf_counter()
        self._idle = 0.0
        self._flops = 0.0

    def since_last(self, step: int) -> dict[str, float]:
        """Rates of the steps up to this one.

        Returns:
          images_per_second; data_wait, the share of time in which the device had
          nothing to do but wait for data; and mfu, model FLOPs utilization: the
          counted FLOPs over time x peak FLOP/s (PaLM, arXiv 2204.02311, appendix B).
          Empty at the first reading, for that step is the compilation's.
        """
        if self._step is None or step == self._step:
            self.restart(step)
            return {}
        seconds = time.perf_counter() - self._began
        images = (step - self._step) * self._batch_size
        rates = {
            "images_per_second": images / seconds,
            "data_wait": self._idle / seconds,
        }
        if self._peak_flops and self._flops:
            rates["mfu"] = self._flops / seconds / self._peak_flops
        self.restart(step)
        return rates
