"""The trainer of every stage: restore or start, train, save, report."""

import contextlib
import functools
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.config import RunConfig, as_run_config, to_dict
from hive_jax.console import log, progress_bar, text_table
from hive_jax.data.invalid import format_counts
from hive_jax.data.tokenizer import keep_tokenizer
from hive_jax.errors import PREEMPTED, ConfigError, DataError, HiveError, NumericsError
from hive_jax.io import write_json
from hive_jax.locks import exclusive_lock
from hive_jax.training import optimizer
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.experiment import Experiment
from hive_jax.training.flops import step_flops
from hive_jax.training.metrics import MetricsWriter, Throughput
from hive_jax.training.peak_flops import peak_flops
from hive_jax.training.resolve import resolve_config, workdir_of_run
from hive_jax.training.stored_run import TOKENIZER_FOLDER
from hive_jax.training.train_step import TrainState
from hive_jax.training.validation import summary_line, validate


class StopRequest:
    """Context manager that records SIGTERM and SIGINT; a second signal ends at once.

    It records nothing in a job of several processes. They must all stop at the same
    step, so JAX catches SIGTERM and agrees on one: `Checkpoints.reached_preemption`.

    Attributes:
      requested: whether a signal has arrived.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> Self:
        # Python accepts signal handlers in the main thread only.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *unused_exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame) -> None:
        # With the previous handler back, a second signal ends the process. It is None
        # if it was not installed from Python.
        self.requested = True
        signal.signal(number, self._previous[number] or signal.SIG_DFL)


def train(
    config: RunConfig | Mapping,
    workdir: str | os.PathLike | None = None,
    *,
    allow_config_change: bool = False,
) -> int:
    """Trains to config.total_steps; resumes the run in `workdir` if there is one.

    Writes to `workdir`: checkpoints/, tokenizer/, metrics.jsonl, bad_samples.jsonl,
    tensorboard/, config.json and, at the end, result.json.

    Args:
      config: a RunConfig, a dict of one, or the ConfigDict of a config file.
      workdir: folder of the run; by default workdir/NAME, after config.name.
      allow_config_change: resume although the config, tokenizer or data changed.

    Returns:
      The exit code: 0, or PREEMPTED after a save on SIGTERM.

    Raises:
      HiveError: before the first step, for a config, data, weights or workdir that
        cannot be used.
      DataError: too many samples are invalid, or a batch has no supervised token.
      NumericsError: the loss or a gradient is not finite.
      OutputError: several saves in a row have failed.
    """
    config = as_run_config(config)
    workdir = workdir_of_run(workdir, config.name)
    # A config or data that cannot be used is refused here, before the workdir changes.
    run = Experiment(resolve_config(config, workdir))
    config = run.config
    log(run.program.parameter_table)
    folder = Path(workdir)
    is_first_process = jax.process_index() == 0
    # Process 0 locks for all: the job is one run.
    lock = exclusive_lock(workdir, "run.lock")
    with (
        lock if is_first_process else contextlib.nullcontext(),
        Checkpoints(workdir, keep=config.max_to_keep) as checkpoints,
        StopRequest() as stop,
    ):
        # Restore the newest good checkpoint, or start from the initial weights.
        state = run.restore(checkpoints, allow_config_change)
        if state is None:
            state = run.start()
        start = int(state.step)
        # After `restore`, which refuses a changed config: config.json stays that of the
        # checkpoints in the folder.
        _prepare_workdir(folder, config, start)
        _record_bad_samples(run, folder, start)
        with MetricsWriter(folder, start) as writer:
            state = _train_loop(run, state, checkpoints, writer, stop)
            step, params = int(state.step), state.params
            if step == config.total_steps:
                # Frees the optimizer's moments: the report loads the initial
                # parameters beside the trained ones.
                del state
                _finish(run, step, params, writer, folder)
                return 0
    log(f"stopped at step {step}, saved; run the same command to resume")
    return PREEMPTED


def _prepare_workdir(folder: Path, config: RunConfig, start: int) -> None:
    """Writes config.json and tokenizer/; removes result.json unless it is final."""
    if start > config.total_steps:
        raise ConfigError(
            f"config.total_steps is {config.total_steps}; the run in {folder} is at "
            f"step {start} already"
        )
    _write_json(folder / "config.json", to_dict(config))
    if jax.process_index() == 0:
        keep_tokenizer(config.data.tokenizer, folder / TOKENIZER_FOLDER)
    if start < config.total_steps and jax.process_index() == 0:
        # The result of a shorter run, which is now being resumed.
        (folder / "result.json").unlink(missing_ok=True)


def _train_loop(
    run: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    stop: StopRequest,
) -> TrainState:
    """Trains until total_steps or a stop request; logs, validates and saves."""
    config, start = run.config, int(state.step)
    throughput = Throughput(config.batch_size, _peak_flops(run))
    # Cached by the length of the texts, which differs between buckets.
    flops = functools.cache(functools.partial(step_flops, config, run.program.assigned))
    accumulation = config.gradient_accumulation_steps
    # The loader counts micro-batches. Its position is a function of the step alone, so
    # that a resumed run reads the samples that an undisturbed one would.
    batches = run.loader.batches(
        start * accumulation, config.total_steps * accumulation
    )
    metrics = None
    with progress_bar(config.name, config.total_steps, start) as bar:
        for step in range(start + 1, config.total_steps + 1):
            # The update. It only starts here: the device computes while the next
            # micro-batches are prepared.
            wait_start = time.perf_counter()
            micro_batches = tuple(itertools.islice(batches, accumulation))
            throughput.waited(time.perf_counter() - wait_start, metrics)
            state, metrics = run.program.train_step(state, micro_batches)
            throughput.count_flops(flops(micro_batches[0].tokens.shape[1]))
            bar.update()

            # What is due after this step.
            stopping = stop.requested or checkpoints.reached_preemption(step)
            is_last = step == config.total_steps
            saving = stopping or is_last or step % config.checkpoint_every == 0
            # A saved step is also logged: reading its metrics checks that they are
            # finite. The first one starts the clock of the rates.
            if saving or step % config.log_every == 0 or step == start + 1:
                values = _read_metrics(run, metrics, step) | throughput.since_last(step)
                values["bad_samples"] = len(run.loader.invalid)
                writer.write(step, {f"train/{k}": v for k, v in values.items()})
                mfu = {"mfu": f"{values['mfu']:.1%}"} if "mfu" in values else {}
                bar.set_postfix(loss=f"{values['loss']:.3f}", **mfu)
            # Validation pauses the clock of the rates.
            if step % config.eval_every == 0 and not is_last:  # `_finish` does the last
                _validate(run, state.params, writer, step)
                throughput.restart(step)
            checkpoints.check()  # reports a failed save now, not at the next one
            if saving:
                checkpoints.save(step, state, run.meta(step))
            if stopping:
                break
    # Ends the reading threads, which are ahead of a run that stopped early.
    batches.close()
    # Saves are asynchronous; the exit code promises that the last one is on disk.
    checkpoints.wait()
    return state


def _read_metrics(
    run: Experiment, metrics: Mapping[str, jax.Array], step: int
) -> dict[str, float]:
    """Returns the metrics of a step as floats, with its learning rate; waits for it.

    Raises:
      DataError, NumericsError: this state must not be saved; `_require_valid`.
    """
    # float() waits for the device.
    values = {name: float(value) for name, value in metrics.items()}
    _require_valid(values, step, has_bad_samples=len(run.loader.invalid) > 0)
    # Of the update just made: the schedule takes the number of updates before it.
    values["learning_rate"] = float(run.program.schedule(step - 1))
    return values


def _require_valid(
    values: Mapping[str, float], step: int, has_bad_samples: bool
) -> None:
    """Raises unless all metrics are finite and the batch had a supervised token.

    A batch of bad samples alone has weight 0 too; max_bad_fraction is their limit.
    """
    if values["loss_weight"] == 0 and not has_bad_samples:
        raise DataError(
            f"step {step}: its batch has no supervised token: check data.source, the "
            f"tokenizer and data.num_tokens"
        )
    not_finite = [name for name, value in values.items() if not np.isfinite(value)]
    if not_finite:
        raise NumericsError(
            f"step {step}: {', '.join(not_finite)} is not finite. The last checkpoint "
            "is good; lower optimizer.peak_lr or optimizer.clip_norm, and resume from "
            "it with allow_config_change"
        )


def _peak_flops(run: Experiment) -> float | None:
    """Returns the peak FLOP/s of all devices, for MFU; None but on process 0, which
    alone writes it and so need not make the others measure theirs."""
    if jax.process_index() != 0:
        return None
    return peak_flops(run.mesh.devices.flatten())


def _validate(run: Experiment, params: dict, writer: MetricsWriter, step: int) -> dict:
    """Writes, logs and returns the validation losses."""
    values = validate(
        run.program.eval_step, params, run.validation, run.validation_batches
    )
    writer.write(step, {f"validation/{k}": v for k, v in values.items()})
    log(f"step {step}: {summary_line(values)}")
    return values


def _finish(
    run: Experiment, step: int, params: dict, writer: MetricsWriter, folder: Path
) -> None:
    """Writes result.json, once: final validation, bad samples, and the relative
    distance that each parameter group moved from its initial value."""
    path = folder / "result.json"
    if path.exists():
        log(f"finished already; its figures are in {path}")
        return
    result = {"step": step, "validation": _validate(run, params, writer, step)}
    result["bad_samples"] = _count_bad_samples(run)
    try:
        # The initial parameters are computed again: they are a function of the config
        # and the weights, and keeping them would double the memory of a run.
        distances = optimizer.relative_distances(run.initial_params(), params)
    except HiveError as error:  # e.g. the previous stage has been deleted since
        log(f"distances moved are not known: {error}")
    else:
        table = [(group, f"{distance:.3e}") for group, distance in distances.items()]
        log(text_table(("group", "relative distance moved"), table))
        result["relative_distance"] = distances
    _write_json(path, result)


def _write_json(path: Path, value) -> None:
    """Writes a JSON file atomically, on process 0 only."""
    if jax.process_index() == 0:
        write_json(path, value)


def _record_bad_samples(run: Experiment, folder: Path, start: int) -> None:
    """Opens bad_samples.jsonl (one file a process) for the loaders of both splits.

    A resumed run keeps the training samples of the steps before `start`, and all
    validation samples, for each validation reads the same ones.
    """
    process = jax.process_index()
    path = folder / (f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl")
    run.loader.invalid.keep_in(path, start * run.config.batch_size)
    run.validation.invalid.keep_in(path, None if start else 0)


def _count_bad_samples(run: Experiment) -> dict[str, dict[str, int]]:
    """Logs and returns split -> reason -> number of distinct samples, over all
    processes; all processes must call it."""
    counts = {}
    for split, loader in (("train", run.loader), ("validation", run.validation)):
        # Each process reads samples of its own; pairs, because JSON has no integer
        # keys.
        for reasons in _gather_json([*loader.invalid.reasons.items()]):
            loader.invalid.include(dict(reasons))
        counts[split] = loader.invalid.counts
        if loader.invalid:
            several = jax.process_count() > 1
            files = "bad_samples*.jsonl" if several else "bad_samples.jsonl"
            log(
                f"bad samples, {split}: {format_counts(counts[split])}; each is named "
                f"in {files}"
            )
    return counts


def _gather_json(value) -> list:
    """Returns the JSON value of each process, by process index; all must call it."""
    if jax.process_count() == 1:
        return [value]
    # As bytes: collectives take arrays, not Python values.
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # The collective takes arrays of one shape: pad to the longest value.
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    contents = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(content[:size]))
        for content, size in zip(contents, sizes, strict=True)
    ]
