"""The one trainer: build, restore or start, loop, report. Stages are configs."""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import RunConfig, differences, to_dict
from hive_jax.data.batch import Batch
from hive_jax.data.loader import Loader
from hive_jax.data.sources import make_source
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import PREEMPTED, CheckpointError, ConfigError, NumericsError
from hive_jax.models.fusion import FUSIONS
from hive_jax.training import optimizer as optimizers
from hive_jax.training import report, sharding, state
from hive_jax.training.checkpoints import Checkpoints
from hive_jax.training.initial import abstract_params, initial_params
from hive_jax.training.lock import WorkdirLock
from hive_jax.training.metrics import MetricsWriter, progress_bar, say
from hive_jax.training.signals import StopRequest
from hive_jax.training.validation import summary_line, validate


def train(config: RunConfig, workdir: str, *, allow_config_change: bool = False) -> int:
    """Trains to config.total_steps, continuing what is in `workdir`.

    Leaves in `workdir`: checkpoints/, metrics.jsonl, tensorboard/, config.json.

    Returns:
      The exit code: 0, or PREEMPTED after a save on SIGTERM.

    Raises:
      HiveError: before any training, for anything that cannot work.
    """
    run = Run(config)
    first = jax.process_index() == 0
    with (
        WorkdirLock(workdir) if first else contextlib.nullcontext(),
        Checkpoints(workdir, keep=config.keep) as checkpoints,
        StopRequest() as stop,
    ):
        train_state = run.restore(checkpoints, allow_config_change)
        if train_state is None:
            train_state = run.start()
        path = Path(workdir)
        if first:
            write_json(path / "config.json", to_dict(config))
        with MetricsWriter(path, int(train_state.step)) as writer:
            train_state = run.loop(train_state, checkpoints, writer, stop)
            if int(train_state.step) == config.total_steps:
                run.finish(train_state, writer, path)
                return 0
    say(f"stopped at step {int(train_state.step)}, saved; run the same command")
    return PREEMPTED


class Run:
    """All that a config decides, built and checked before anything is trained."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.model = state.build_model(config)
        self.mesh = sharding.make_mesh(config.mesh)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self._check_vocabulary()
        self.part_size = config.batch_size // config.accumulate
        self.loader = self._loader("train", config.seed, self.part_size)
        # At least two, for each sample is also shown its neighbour's image.
        self.validation_size = max(2, min(self.part_size, config.data.validation_size))
        self.validation = self._loader("validation", None, self.validation_size)
        spec = self.loader.spec
        self.abstract_params = abstract_params(self.model, spec, self.mesh)
        shapes = flatten_dict(self.abstract_params, sep="/")
        self.assigned = optimizers.assign_rules(
            shapes, config.rules, lambda: names_of_other_fusions(config, spec)
        )
        self.optimizer = optimizers.make_optimizer(
            config.optimizer, config.total_steps, self.assigned
        )
        self.schedule = optimizers.learning_rate(config.optimizer, config.total_steps)
        rate = config.optimizer.peak_lr
        say(report.parameter_table(shapes, self.assigned, rate))
        self._compile_steps()

    def _check_vocabulary(self) -> None:
        config, tokenizer = self.config, self.tokenizer
        contrastive = config.objective == "contrastive"
        part = config.text_tower if contrastive else config.model.decoder
        if tokenizer.vocab_size > part.vocab_size:
            raise ConfigError(
                f"{config.data.tokenizer} has {tokenizer.vocab_size} tokens, the model "
                f"a table of {part.vocab_size}: choose the tokenizer of these weights"
            )
        if contrastive and part.num_tokens != config.data.num_tokens:
            raise ConfigError(
                f"config.text_tower.num_tokens is {part.num_tokens}; expected "
                f"data.num_tokens = {config.data.num_tokens}"
            )

    def _loader(self, split: str, shuffle_seed: int | None, batch_size: int) -> Loader:
        config = self.config
        with_image = config.objective == "contrastive" or (
            config.model.fusion != "none"
        )
        source = make_source(
            config.data,
            split,
            image_size=config.model.encoder.image_size,
            with_image=with_image,
        )
        return Loader(
            source,
            self.tokenizer,
            batch_size=batch_size,
            num_tokens=config.data.num_tokens,
            image_size=config.model.encoder.image_size,
            sharding=sharding.batch_sharding(self.mesh, batch_size),
            shuffle_seed=shuffle_seed,
            threads=config.data.threads,
        )

    def _compile_steps(self) -> None:
        abstract = jax.eval_shape(
            lambda params: state.init_state(params, self.optimizer, self.assigned),
            self.abstract_params,
        )
        shardings = state.state_shardings(self.mesh, abstract, self.optimizer)
        self.abstract_state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            abstract,
            shardings,
        )
        step = state.make_train_step(self.model, self.optimizer, self.assigned)
        everywhere = sharding.replicated(self.mesh)
        self.train_step = jax.jit(
            step, donate_argnums=0, out_shardings=(shardings, everywhere)
        )
        self.eval_step = jax.jit(
            state.make_eval_step(self.model), out_shardings=everywhere
        )

    def fingerprints(self) -> dict[str, str]:
        """What else the numbers depend on: tokenizer, data, preprocessing."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "data": self.loader.source.fingerprint,
        }

    def meta(self, step: int) -> dict:
        """What a checkpoint says of itself."""
        return {
            "config": to_dict(self.config),
            "inputs": self.fingerprints(),
            "samples_read": step * self.config.batch_size,
        }

    def initial_params(self) -> dict:
        """The parameters of step 0; the same each time."""

        def sample_images():
            source = self.loader.source
            return np.stack([source[i].image for i in range(min(1000, len(source)))])

        return initial_params(
            self.config,
            self.model,
            self.abstract_params,
            self.loader.spec,
            sample_images,
        )

    def start(self) -> state.TrainState:
        """The state of step 0."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(
            lambda params: state.init_state(params, self.optimizer, self.assigned),
            out_shardings=shardings,
            donate_argnums=0,
        )(self.initial_params())

    def restore(
        self, checkpoints: Checkpoints, allow_config_change: bool
    ) -> state.TrainState | None:
        """The newest good checkpoint's state, or None; refuses another config's."""
        if checkpoints.latest_step() is None:
            return None
        meta = checkpoints.read_meta()
        now = json.loads(json.dumps(self.meta(0)))
        changed = differences(meta["config"], now["config"])
        changed += differences(meta["inputs"], now["inputs"], "inputs.")
        if changed and not allow_config_change:
            listed = "\n  ".join(changed)
            raise CheckpointError(
                f"this run is not the one in {checkpoints.directory} "
                f"(checkpoint -> now):\n  {listed}\nUse the same values, another "
                f"--workdir, or --allow_config_change to go on with the new ones."
            )
        restored, meta = checkpoints.restore(self.abstract_state)
        assert int(restored.step) == meta["step"]
        say(f"continuing from step {meta['step']} in {checkpoints.directory}")
        if changed:
            say("config changed: " + ", ".join(changed))
        return restored

    def loop(self, train_state, checkpoints, writer, stop) -> state.TrainState:
        """Steps until the end or a stop request; saves, logs and validates."""
        config = self.config
        start = int(train_state.step)
        clock = Clock(self.loader, config.batch_size)
        batches = self.loader.batches(
            start * config.accumulate, config.total_steps * config.accumulate
        )
        with progress_bar(config.name, config.total_steps, start) as bar:
            for step in range(start + 1, config.total_steps + 1):
                parts = tuple(itertools.islice(batches, config.accumulate))
                train_state, metrics = self.train_step(train_state, parts)
                bar.update()
                stopping = stop.requested or checkpoints.reached_preemption(step)
                last = step == config.total_steps
                saving = stopping or last or step % config.checkpoint_every == 0
                if saving or step % config.log_every == 0 or step == start + 1:
                    values = {k: float(v) for k, v in metrics.items()}
                    require_finite(values, step)
                    bar.set_postfix(loss=f"{values['loss']:.3f}")
                    values["learning_rate"] = float(self.schedule(step - 1))
                    values |= clock.since_last(step)
                    writer.write(step, {f"train/{k}": v for k, v in values.items()})
                if step % config.eval_every == 0 and not last:
                    self.validate(train_state, writer, step)
                    clock.restart(step)
                checkpoints.check()
                if saving:
                    checkpoints.save(step, train_state, self.meta(step))
                if stopping:
                    break
        batches.close()
        checkpoints.wait()
        return train_state

    def validate(self, train_state, writer, step: int) -> dict:
        """Writes and returns the losses on held-out samples."""
        count = -(-self.config.data.validation_size // self.validation_size)
        values = validate(self.eval_step, train_state.params, self.validation, count)
        writer.write(step, {f"validation/{k}": v for k, v in values.items()})
        say(f"step {step}: {summary_line(values)}")
        return values

    def finish(self, train_state, writer, workdir: Path) -> None:
        """Final validation, and how far each part moved from where it started; once."""
        path = workdir / "result.json"
        if path.exists() and json.loads(path.read_text())["step"] == train_state.step:
            say(f"finished already; its figures are in {path}")
            return
        values = self.validate(train_state, writer, self.config.total_steps)
        moved = report.distances(self.initial_params(), train_state.params)
        rows = [(part, f"{distance:.3e}") for part, distance in moved.items()]
        say(report.table(("part", "relative distance moved"), rows))
        if jax.process_index() == 0:
            result = {
                "step": self.config.total_steps,
                "validation": values,
                "relative_distance": moved,
            }
            write_json(path, result)


class Clock:
    """Throughput since the last reading, without compilation and validation."""

    def __init__(self, loader: Loader, batch_size: int):
        self._loader = loader
        self._batch_size = batch_size
        self._began = None

    def restart(self, step: int) -> None:
        self._began = time.perf_counter()
        self._step = step
        self._waited = self._loader.seconds_waited

    def since_last(self, step: int) -> dict[str, float]:
        """images_per_second and the share of time spent waiting for data; nothing at
        the first reading, which is the compilation's."""
        if self._began is None or step == self._step:
            self.restart(step)
            return {}
        seconds = time.perf_counter() - self._began
        waited = self._loader.seconds_waited - self._waited
        images = (step - self._step) * self._batch_size
        self.restart(step)
        return {"images_per_second": images / seconds, "data_wait": waited / seconds}


def write_json(path: Path, value) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def require_finite(values: dict[str, float], step: int) -> None:
    """Raises NumericsError before a broken state could be saved."""
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise NumericsError(
            f"step {step}: {', '.join(broken)} is not finite. The last checkpoint is "
            f"good; lower optimizer.peak_lr or optimizer.clip_norm, and go on from it "
            f"with --allow_config_change"
        )


def names_of_other_fusions(config: RunConfig, batch: Batch) -> set[str]:
    """Parameter names of the model under every fusion."""
    names = set()
    for fusion in FUSIONS:
        model = dataclasses.replace(config.model, fusion=fusion)
        other = state.build_model(dataclasses.replace(config, model=model))
        shapes = jax.eval_shape(lambda m=other: state.init_params(m, batch, 0))
        names |= set(flatten_dict(shapes, sep="/"))
    return names
