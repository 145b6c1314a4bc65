"""The one trainer: restore or start, loop, report. Stages are configs."""

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
from hive_jax.io import exclusive_lock, write_json
from hive_jax.training import optimizer
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.experiment import Experiment
from hive_jax.training.flops import step_flops
from hive_jax.training.metrics import MetricsWriter, Throughput
from hive_jax.training.peak_flops import peak_flops
from hive_jax.training.resolve import default_workdir, resolve_config
from hive_jax.training.stored_run import TOKENIZER_FOLDER
from hive_jax.training.train_step import TrainState
from hive_jax.training.validation import summary_line, validate


class StopRequest:
    """Notes SIGTERM and SIGINT; a context manager. A second signal ends at once.

    With several processes nothing is noted: they must all stop at one step, so JAX
    itself takes SIGTERM and agrees on one; see Checkpoints.reached_preemption.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused_exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.requested = True
        signal.signal(number, self._previous[number] or signal.SIG_DFL)


def train(
    config: RunConfig | Mapping,
    workdir: str | os.PathLike | None = None,
    *,
    allow_config_change: bool = False,
) -> int:
    """Trains to config.total_steps, continuing the run in `workdir`.

    Writes to `workdir`: checkpoints/, tokenizer/, metrics.jsonl, bad_samples.jsonl,
    tensorboard/, config.json and, at the end, result.json.

    Args:
      config: a RunConfig, or what `get_config` of a config file returns.
      workdir: by default workdir/NAME, after config.name.
      allow_config_change: continue although the config, tokenizer or data changed.

    Returns:
      The exit code: 0, or PREEMPTED after a save on SIGTERM.

    Raises:
      HiveError: before any training, for anything that cannot work.
    """
    config = as_run_config(config)
    workdir = os.fspath(workdir or default_workdir(config.name))
    run = Experiment(resolve_config(config, workdir))
    config = run.config
    log(run.program.parameter_table)
    folder = Path(workdir)
    first = jax.process_index() == 0
    with (
        exclusive_lock(workdir, "run.lock") if first else contextlib.nullcontext(),
        Checkpoints(workdir, keep=config.max_to_keep) as checkpoints,
        StopRequest() as stop,
    ):
        state = run.restore(checkpoints, allow_config_change)
        if state is None:
            state = run.start()
        start = int(state.step)
        _prepare(folder, config, start)
        keep_bad_samples(run, folder, start)
        with MetricsWriter(folder, start) as writer:
            state = _loop(run, state, checkpoints, writer, stop)
            step, params = int(state.step), state.params
            if step == config.total_steps:
                del state  # the report needs the room of the optimizer's moments
                _finish(run, step, params, writer, folder)
                return 0
    log(f"stopped at step {step}, saved; run the same command to go on")
    return PREEMPTED


def _prepare(folder: Path, config: RunConfig, start: int) -> None:
    """Writes what the run is; removes the result of a run that went on from here."""
    if start > config.total_steps:
        raise ConfigError(
            f"config.total_steps is {config.total_steps}; the run in {folder} is at "
            f"step {start} already"
        )
    _write_json(folder / "config.json", to_dict(config))
    if jax.process_index() == 0:
        keep_tokenizer(config.data.tokenizer, folder / TOKENIZER_FOLDER)
    if start < config.total_steps and jax.process_index() == 0:
        (folder / "result.json").unlink(missing_ok=True)


def _loop(
    run: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    stop: StopRequest,
) -> TrainState:
    """Steps until the end or a stop request; logs, validates and saves on the way."""
    config, start = run.config, int(state.step)
    throughput = Throughput(config.batch_size, _peak_flops(run))
    metrics = None
    # By the length of the texts, which buckets vary.
    flops = functools.cache(functools.partial(step_flops, config, run.program.assigned))
    batches = run.loader.batches(
        start * config.gradient_accumulation_steps,
        config.total_steps * config.gradient_accumulation_steps,
    )
    with progress_bar(config.name, config.total_steps, start) as bar:
        for step in range(start + 1, config.total_steps + 1):
            asked = time.perf_counter()
            micro_batches = tuple(
                itertools.islice(batches, config.gradient_accumulation_steps)
            )
            throughput.waited(time.perf_counter() - asked, metrics)
            state, metrics = run.program.train_step(state, micro_batches)
            throughput.count_flops(flops(micro_batches[0].tokens.shape[1]))
            bar.update()
            stopping = stop.requested or checkpoints.reached_preemption(step)
            last = step == config.total_steps
            saving = stopping or last or step % config.checkpoint_every == 0
            if saving or step % config.log_every == 0 or step == start + 1:
                values = {name: float(value) for name, value in metrics.items()}
                _require_sound(values, step, len(run.loader.invalid) > 0)
                values["learning_rate"] = float(run.program.schedule(step - 1))
                values |= throughput.since_last(step)
                mfu = {"mfu": f"{values['mfu']:.1%}"} if "mfu" in values else {}
                bar.set_postfix(loss=f"{values['loss']:.3f}", **mfu)
                values["bad_samples"] = len(run.loader.invalid)
                writer.write(step, {f"train/{k}": v for k, v in values.items()})
            if step % config.eval_every == 0 and not last:
                _validate(run, state.params, writer, step)
                throughput.restart(step)
            checkpoints.check()
            if saving:
                checkpoints.save(step, state, run.meta(step))
            if stopping:
                break
    batches.close()
    checkpoints.wait()
    return state


def _peak_flops(run: Experiment) -> float | None:
    """What MFU is a share of; known to process 0, which alone writes it."""
    if jax.process_index() != 0:
        return None
    return peak_flops(run.mesh.devices.flatten())


def _validate(run: Experiment, params: dict, writer: MetricsWriter, step: int) -> dict:
    """Writes and returns the losses on held-out samples."""
    values = validate(
        run.program.eval_step, params, run.validation, run.validation_batches
    )
    writer.write(step, {f"validation/{k}": v for k, v in values.items()})
    log(f"step {step}: {summary_line(values)}")
    return values


def _finish(
    run: Experiment, step: int, params: dict, writer: MetricsWriter, folder: Path
) -> None:
    """Final validation, and how far each part moved from where it started; once."""
    path = folder / "result.json"
    if path.exists():
        log(f"finished already; its figures are in {path}")
        return
    result = {"step": step, "validation": _validate(run, params, writer, step)}
    result["bad_samples"] = count_bad_samples(run)
    try:
        moved = optimizer.relative_distances(run.initial_params(), params)
    except HiveError as error:  # the stage before is gone since
        log(f"distances moved are not known: {error}")
    else:
        rows = [(part, f"{distance:.3e}") for part, distance in moved.items()]
        log(text_table(("part", "relative distance moved"), rows))
        result["relative_distance"] = moved
    _write_json(path, result)


def _write_json(path: Path, value) -> None:
    """Writes a file whole or not at all; process 0 only."""
    if jax.process_index() == 0:
        write_json(path, value)


def _require_sound(values: dict[str, float], step: int, bad_samples: bool) -> None:
    """Raises before a state could be saved that is broken, or has learnt nothing; a
    batch of nothing but bad samples is neither."""
    if values["loss_weight"] == 0 and not bad_samples:
        raise DataError(
            f"step {step}: its batch has no supervised token: check data.source, the "
            f"tokenizer and data.num_tokens"
        )
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise NumericsError(
            f"step {step}: {', '.join(broken)} is not finite. The last checkpoint is "
            f"good; lower optimizer.peak_lr or optimizer.clip_norm, and continue from "
            "it with allow_config_change"
        )


def keep_bad_samples(run: Experiment, folder: Path, start: int) -> None:
    """Names the bad samples of both splits in a file; other processes in theirs.

    A run that goes on at step `start` still has those of the steps before, and those
    of the validation, which reads the same samples each time.
    """
    process = jax.process_index()
    path = folder / (f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl")
    run.loader.invalid.keep_in(path, start * run.config.batch_size)
    run.validation.invalid.keep_in(path, None if start else 0)


def count_bad_samples(run: Experiment) -> dict[str, dict[str, int]]:
    """Split -> reason -> samples that any process has found, each once; says so too.

    All processes must call it.
    """
    counts = {}
    for split, loader in (("train", run.loader), ("validation", run.validation)):
        for found in gathered([*loader.invalid.reasons.items()]):
            loader.invalid.include(dict(found))
        counts[split] = loader.invalid.counts
        if loader.invalid:
            files = "bad_samples.jsonl" + " and its like" * (jax.process_count() > 1)
            log(
                f"bad samples, {split}: {format_counts(counts[split])}; each is named in {files}"
            )
    return counts


def gathered(value) -> list:
    """A JSON value of each process, in their order; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    room = np.zeros(sizes.max(), np.uint8)
    room[: content.size] = content
    rows = multihost_utils.process_allgather(room)
    return [
        json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)
    ]
