"""The trainer of every stage: restore or start, train, save, report."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from hive_jax.buckets import as_path
from hive_jax.config import RunConfig, as_run_config, to_dict
from hive_jax.console import log, progress_bar, text_table
from hive_jax.data.tokenizer import keep_tokenizer
from hive_jax.errors import PREEMPTED, ConfigError, DataError, HiveError, NumericsError
from hive_jax.io import write_json
from hive_jax.locks import exclusive_lock
from hive_jax.log_file import flush_logs, logs_flushed
from hive_jax.training import optimizer, watchdog
from hive_jax.training.bad_samples import count_bad_samples, record_bad_samples
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.experiment import Experiment
from hive_jax.training.flops import step_flops
from hive_jax.training.metrics import MetricsWriter, Throughput
from hive_jax.training.peak_flops import peak_flops
from hive_jax.training.preemption import StopRequest, released_on_exit
from hive_jax.training.resolve import resolve_config, workdir_of_run
from hive_jax.training.run_timing import summary_line as timing_line
from hive_jax.training.stored_run import TOKENIZER_FOLDER
from hive_jax.training.train_step import TrainState
from hive_jax.training.validation import summary_line, validate
from hive_jax.training.workdir import is_final, set_aside_unusable


def train(
    config: RunConfig | Mapping,
    workdir: str | os.PathLike | None = None,
    *,
    allow_config_change: bool = False,
) -> int:
    """Trains to config.total_steps; resumes the run in `workdir` if there is one.

    Writes to `workdir`: checkpoints/, tokenizer/, metrics.jsonl, bad_samples.jsonl,
    tensorboard/, config.json and, at the end, timing.json and result.json.

    Args:
      config: a RunConfig, a dict of one, or the ConfigDict of a config file.
      workdir: folder or URL (gs://, s3://) of the run; by default workdir/NAME, after
        config.name.
      allow_config_change: resume although the config, tokenizer or data changed.

    Returns:
      The exit code: 0, or PREEMPTED after a save on SIGTERM.

    Raises:
      HiveError: before the first step, for a config, data, weights or workdir that
        cannot be used.
      DataError: too many samples are invalid, or a batch has no supervised token.
      NumericsError: the loss, a gradient, or a value to save is not finite.
      OutputError: several saves in a row have failed.
    """
    config = as_run_config(config)
    watchdog.set_timeout(config.hang_timeout)
    watchdog.enter("the config")
    workdir = workdir_of_run(workdir, config.name)
    # A config or data that cannot be used is refused here, before the workdir changes.
    resolved = resolve_config(config, workdir)
    watchdog.enter("opening the data")
    run = Experiment(resolved)
    config = run.config
    log(run.program.parameter_table)
    for note in run.loader.source.notes:
        log(note)
    folder = as_path(workdir)
    is_first_process = jax.process_index() == 0
    # Process 0 locks for all: the job is one run.
    lock = released_on_exit(exclusive_lock(workdir, "run.lock"))
    with (
        lock if is_first_process else contextlib.nullcontext(),
        logs_flushed(),
        Checkpoints(workdir, keep=config.max_to_keep) as checkpoints,
    ):
        if is_first_process:
            set_aside_unusable(folder)
        watchdog.enter("reading the weights")
        # Restore the newest good checkpoint, or start from the initial weights.
        state = run.restore(checkpoints, allow_config_change)
        if state is None:
            state = run.start()
        start = int(state.step)
        # After `restore`, which refuses a changed config: config.json stays that of the
        # checkpoints in the folder.
        _prepare_workdir(folder, config, start)
        record_bad_samples(run, folder, start)
        writer = MetricsWriter(folder, start)
        with StopRequest() as stop, _explain_divergence(checkpoints):
            state = _train_loop(run, state, checkpoints, writer, stop)
        step, params = int(state.step), state.params
        if step == config.total_steps:
            # Frees the optimizer's moments: the report loads the initial parameters
            # beside the trained ones.
            del state
            _finish(run, step, params, writer, folder)
        timing = watchdog.end_timing()
        _write_json(folder / "timing.json", {"start": start, "step": step, **timing})
        log(timing_line(timing))
        if step == config.total_steps:
            return 0
    log(f"stopped at step {step}, saved; run the same command to resume")
    return PREEMPTED


def _prepare_workdir(folder, config: RunConfig, start: int) -> None:
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
    train_step = watchdog.compile_together(run.program.train_step)
    with progress_bar(config.name, config.total_steps, start) as bar:
        for step in range(start + 1, config.total_steps + 1):
            # The update. It only starts here: the device computes while the next
            # micro-batches are prepared.
            watchdog.enter("waiting for data" if metrics else "the first batch")
            wait_start = time.perf_counter()
            micro_batches = tuple(itertools.islice(batches, accumulation))
            throughput.waited(time.perf_counter() - wait_start, metrics)
            watchdog.enter("the train step")
            state, metrics = train_step(state, micro_batches)
            throughput.count_flops(flops(micro_batches[0].tokens.shape[1]))
            bar.update()

            # What is due after this step.
            stopping = stop.check()
            is_last = step == config.total_steps
            saving = stopping or is_last or step % config.checkpoint_every == 0
            # `_finish` does the last validation.
            validating = step % config.eval_every == 0 and not (is_last or stopping)
            # A saved step is also logged: reading its metrics checks that they are
            # finite; and a validation may end in a save. The first one starts the
            # clock of the rates.
            is_first = step == start + 1
            if saving or validating or is_first or step % config.log_every == 0:
                watchdog.enter("reading the metrics")
                values = _read_metrics(run, metrics, step) | throughput.since_last(step)
                values["bad_samples"] = len(run.loader.invalid)
                if is_first:
                    # From now on there is something to save: before it is logged, as
                    # a logged step is never lost to a signal.
                    stop.listen()
                    watchdog.end_first_step()
                writer.write(step, {f"train/{k}": v for k, v in values.items()})
                mfu = {"mfu": f"{values['mfu']:.1%}"} if "mfu" in values else {}
                bar.set_postfix(loss=f"{values['loss']:.3f}", **mfu)
            # Validation pauses the clock of the rates.
            if validating:
                stopping = not _validate(run, state.params, writer, step, stop.check)
                throughput.restart(step)
            checkpoints.check()  # reports a failed save now, not at the next one
            if saving or stopping:
                watchdog.enter("the save")
                # The records of these steps are not written again by a resumed run.
                flush_logs()
                checkpoints.save(step, state, run.meta(step))
            if stopping:
                break
    # Ends the reading threads, which are ahead of a run that stopped early.
    batches.close()
    watchdog.enter("the last save")
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
        raise NumericsError(f"step {step}: not finite: {', '.join(not_finite)}")


@contextlib.contextmanager
def _explain_divergence(checkpoints: Checkpoints) -> Iterator[None]:
    """Context manager that adds what to do to a NumericsError."""
    try:
        yield
    except NumericsError as error:
        newest = checkpoints.latest_step()
        advice = "Lower optimizer.peak_lr or optimizer.clip_norm, and "
        if newest is None:
            advice += "start again; there is no checkpoint yet"
        else:
            advice += (
                f"resume from step {newest} with allow_config_change. If it fails there "
                f"again, move {checkpoints.directory}/{newest} away, to resume from the "
                "step before or to start again"
            )
        raise NumericsError(f"{error}. {advice}.") from error


def _peak_flops(run: Experiment) -> float | None:
    """Returns the peak FLOP/s of all devices, for MFU; None but on process 0, which
    alone writes it and so need not make the others measure theirs."""
    if jax.process_index() != 0:
        return None
    return peak_flops(run.mesh.devices.flatten())


def _validate(
    run: Experiment,
    params: dict,
    writer: MetricsWriter,
    step: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict | None:
    """Writes, logs and returns the validation losses; None if it was stopped."""
    values = validate(
        run.program.eval_step,
        params,
        run.validation,
        run.validation_batches,
        should_stop,
    )
    if values is None:
        return None
    writer.write(step, {f"validation/{k}": v for k, v in values.items()})
    log(f"step {step}: {summary_line(values)}")
    return values


def _finish(
    run: Experiment, step: int, params: dict, writer: MetricsWriter, folder
) -> None:
    """Writes result.json, once: final validation, bad samples, and the relative
    distance that each parameter group moved from its initial value."""
    watchdog.enter("the end")
    path = folder / "result.json"
    if is_final(path, step):
        log(f"finished already; results in {path}")
        return
    result = {"step": step, "validation": _validate(run, params, writer, step)}
    watchdog.enter("the result")
    result["bad_samples"] = count_bad_samples(run)
    try:
        # The initial parameters are computed again: they are a function of the config
        # and the weights, and keeping them would take more memory than the train step.
        before = run.initial_params(names=run.program.trainable(params))
        distances = optimizer.relative_distances(before, params)
    except HiveError as error:  # e.g. the previous stage has been deleted since
        log(f"distances moved are not known: {error}")
    else:
        table = [(group, f"{distance:.3e}") for group, distance in distances.items()]
        log(text_table(("group", "relative distance moved"), table))
        result["relative_distance"] = distances
    flush_logs()
    _write_json(path, result)


def _write_json(path, value) -> None:
    """Writes a JSON file atomically, on process 0 only."""
    if jax.process_index() == 0:
        write_json(path, value)
