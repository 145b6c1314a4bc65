"""All that a config decides, built and checked before training."""

import contextlib
import itertools
import json
from collections.abc import Iterator

import jax
import numpy as np

from hive_jax.config import differences, to_dict
from hive_jax.console import log, progress_bar
from hive_jax.data.invalid import InvalidSample, InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import LengthBucketSampler, ShuffledSampler, count_all_tokens
from hive_jax.data.sources.registry import make_source
from hive_jax.data.tokenizer import load_tokenizer, require_fitting
from hive_jax.errors import CheckpointError, ConfigError, DataError
from hive_jax.training import sharding, train_step
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.initialization import initial_params, whiten_patch_embedding
from hive_jax.training.resolve import ResolvedRun
from hive_jax.training.train_step import Program

_WHITENING_IMAGES = 1000


class Experiment:
    """The program, the data and the initial parameters of a run.

    Args:
      resolved: as from `resolve_config`.

    Attributes:
      config: complete RunConfig.
      mesh: of the devices.
      program: model, optimizer, compiled steps.
      loader, validation: batches of the two splits.
      validation_batches: of them in one evaluation.
    """

    def __init__(self, resolved: ResolvedRun):
        self._resolved = resolved
        self.config = config = resolved.config
        self.mesh = sharding.make_mesh(config.mesh)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self._check_vocabulary()
        micro_batch = config.batch_size // config.gradient_accumulation_steps
        self.loader = self._loader("train", micro_batch)
        # Fewer than a micro-batch only for the smallest sets; at least two, for each
        # sample is also shown its neighbour's image.
        rows = max(2, min(micro_batch, config.data.validation_size))
        size = sharding.round_up(self.mesh, rows)
        self.validation = self._loader("validation", size)
        self.validation_batches = max(1, config.data.validation_size // size)
        self.program = Program(config, self.mesh, len(self.validation.tag_names))

    def _check_vocabulary(self) -> None:
        config, tokenizer = self.config, self.tokenizer
        contrastive = config.objective == "contrastive"
        tower = config.text_tower if contrastive else config.model.decoder
        require_fitting(tokenizer, config.data.tokenizer, tower.vocab_size)
        if contrastive and tower.num_tokens != config.data.num_tokens:
            raise ConfigError(
                f"config.text_tower.num_tokens is {tower.num_tokens}; expected "
                f"data.num_tokens = {config.data.num_tokens}"
            )

    def _loader(self, split: str, batch_size: int) -> Loader:
        config, trains = self.config, split == "train"
        source = self._source(
            split,
            config.objective == "contrastive" or config.model.fusion_class.uses_image,
        )
        return Loader(
            source,
            self.tokenizer,
            sampler=self._sampler(len(source))
            if trains
            else ShuffledSampler(len(source)),
            batch_size=batch_size,
            num_tokens=config.data.num_tokens,
            image_size=config.model.image_size,
            preprocessing=config.data.preprocessing,
            invalid=InvalidSampleLog(
                split, len(source), config.data.max_bad_fraction, source.describe
            ),
            sharding=sharding.batch_sharding(self.mesh, batch_size),
            threads=config.data.threads,
            augment_seed=config.seed if trains and config.data.augment else None,
            tag_names=() if trains else source.tag_names,
        )

    def _source(self, split: str, with_image: bool):
        return make_source(
            self.config.data,
            split,
            image_size=self.config.model.image_size,
            with_image=with_image,
        )

    def _sampler(self, size: int) -> ShuffledSampler:
        """The order that the train split is read in."""
        config = self.config
        if not config.data.buckets:
            return ShuffledSampler(size, config.seed)
        with progress_bar("lengths of texts", size, 0) as bar:
            tokens = count_all_tokens(
                self._source("train", with_image=False),
                self.tokenizer,
                config.data.num_tokens,
                config.data.threads,
                bar.update,
            )
        return LengthBucketSampler(
            tokens,
            config.seed,
            batch_size=config.batch_size,
            buckets=config.data.buckets,
        )

    def meta(self, step: int) -> dict:
        """A checkpoint's metadata: the config, fingerprints of what else the numbers
        depend on, and the position in the data."""
        return {
            "config": to_dict(self.config),
            "inputs": {
                "tokenizer": self.tokenizer.fingerprint,
                "data": self.loader.source.fingerprint,
                "dtype": jax.numpy.dtype(self.program.model.dtype).name,
            },
            "samples_read": step * self.config.batch_size,
        }

    def initial_params(self) -> dict:
        """The parameters of step 0; the same each time."""
        params = initial_params(
            self._resolved,
            self.program.model,
            self.program.abstract_params,
            self.loader.spec,
            self.tokenizer.fingerprint,
        )
        if self.config.whiten_patches:
            images = [*itertools.islice(self._images(), _WHITENING_IMAGES)]
            if not images:
                raise DataError(
                    f"config.whiten_patches: no image of {self.config.data.source} can "
                    "be read; look at them with tools/prepare_data.py check"
                )
            params = whiten_patch_embedding(params, np.stack(images))
        return params

    def _images(self) -> Iterator[np.ndarray]:
        """The images of the train split that can be read, in its order."""
        for index in range(len(self.loader.source)):
            with contextlib.suppress(InvalidSample):
                yield self.loader.image(index)

    def start(self) -> train_step.TrainState:
        """The state of step 0."""
        return self.program.start(self.initial_params())

    def restore(
        self, checkpoints: Checkpoints, allow_config_change: bool
    ) -> train_step.TrainState | None:
        """The newest good checkpoint's state, or None where there is none.

        Args:
          checkpoints: of the workdir.
          allow_config_change: go on although the config, tokenizer or data changed.

        Raises:
          CheckpointError: it is of another config, tokenizer or data; each changed
            key is named.
        """
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
                "workdir, or allow_config_change to go on with the new ones."
            )
        restored, meta = checkpoints.restore(self.program.abstract_state)
        assert int(restored.step) == meta["step"]
        log(f"continuing from step {meta['step']} in {checkpoints.directory}")
        if changed:
            log("config changed: " + ", ".join(changed))
        return restored
