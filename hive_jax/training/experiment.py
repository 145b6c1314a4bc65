"""The program, data and initial parameters of a run, built and checked first."""

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator

import jax
import numpy as np

from hive_jax.config import differences, to_dict
from hive_jax.console import log, progress_bar
from hive_jax.data.batch import Batch
from hive_jax.data.chat_template import fingerprint_of
from hive_jax.data.invalid import InvalidSample, InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import LengthBucketSampler, ShuffledSampler, count_all_tokens
from hive_jax.data.sources.registry import make_source
from hive_jax.data.tokenizer import load_tokenizer, require_fitting
from hive_jax.errors import CheckpointError, ConfigError, DataError
from hive_jax.training import sharding, train_step
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.initialization import initial_params
from hive_jax.training.patch_whitening import whiten_patch_embedding
from hive_jax.training.resolve import ResolvedRun
from hive_jax.training.train_step import Program

# They have far more patches than an estimate of the patches' covariance needs.
_WHITENING_IMAGES = 1000


class Experiment:
    """The program, the data and the initial parameters of a run.

    Args:
      resolved: from `resolve_config`.

    Attributes:
      config: complete RunConfig.
      mesh: device mesh.
      tokenizer: of config.data.
      program: model, optimizer and compiled steps.
      loader: micro-batches of the train split.
      validation: batches of the validation split.
      validation_batches: number of batches of one validation.

    Raises:
      ConfigError: the mesh, rules, tokenizer and data do not fit each other.
      DataError, MissingInputError: the data cannot be opened.
    """

    def __init__(self, resolved: ResolvedRun):
        self._resolved = resolved
        self.config = config = resolved.config
        # Cheap checks first: mesh and tokenizer, then the data, then the traced model.
        self.mesh = sharding.make_mesh(config.mesh)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self._check_vocabulary()
        # The loader yields micro-batches; the trainer takes as many as a step has.
        micro_batch = config.batch_size // config.gradient_accumulation_steps
        self.loader = self._loader("train", micro_batch)
        self._check_chat_template()
        # Batches of a micro-batch, which fits the memory, or smaller for a small split;
        # at least two samples, because each is paired with its neighbour's image too.
        size = max(2, min(micro_batch, config.data.validation_size))
        size = sharding.round_up(self.mesh, size)
        self.validation = self._loader("validation", size)
        self.validation_batches = max(1, config.data.validation_size // size)
        self.program = Program(config, self.mesh, len(self.validation.tag_names))

    def _check_vocabulary(self) -> None:
        """Raises ConfigError unless the tokenizer and text length fit the model."""
        config, tokenizer = self.config, self.tokenizer
        contrastive = config.objective == "contrastive"
        tower = config.text_tower if contrastive else config.model.decoder
        require_fitting(tokenizer, config.data.tokenizer, tower.vocab_size)
        if contrastive and tower.num_tokens != config.data.num_tokens:
            raise ConfigError(
                f"config.text_tower.num_tokens is {tower.num_tokens}; expected "
                f"data.num_tokens = {config.data.num_tokens}"
            )

    def _check_chat_template(self) -> None:
        """Raises DataError or ConfigError if conversations cannot be written by it."""
        if not self._chat_template():
            return
        # Before any work: it is compiled, and tried on a question with its answer.
        chat = self.tokenizer.chat_format
        if self.config.objective == "contrastive":
            raise ConfigError(
                "config.data.source has conversations, for which the tokenizer has a chat "
                "template, and config.objective is 'contrastive', whose texts are lines; "
                "use form=plain"
            )
        # An id without a row would silently be another token's.
        ids, _ = self.tokenizer.encode_rendered(chat.example, ())
        num_rows = self.config.model.decoder.vocab_size
        if max(ids) >= num_rows:
            token = self.tokenizer.token_of(max(ids))
            raise ConfigError(
                f"the chat template of {self.config.data.tokenizer} writes {token!r}, id "
                f"{max(ids)}, and the model has a table of {num_rows} tokens: choose the "
                "tokenizer of these weights"
            )
        end = chat.end_token
        log(f"conversations by the tokenizer's chat template; answers end with {end!r}")

    def _chat_template(self) -> str:
        """Returns the template that the data is written by; empty for none."""
        uses = self.loader.source.has_conversations
        return self.tokenizer.chat_template if uses else ""

    def _loader(self, split: str, batch_size: int) -> Loader:
        """Returns the loader of a split; only "train" is shuffled and augmented."""
        config, trains = self.config, split == "train"
        source = self._source(split, config.uses_image)
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
            # Validation images are the same each time.
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
        """Returns the sampler of the train split."""
        config = self.config
        if not config.data.buckets:
            return ShuffledSampler(size, config.seed)
        # Buckets need all lengths before the first step; images are not decoded.
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
        """Returns the metadata of a checkpoint: the config, fingerprints of the other
        inputs that the numbers depend on, and the position in the data."""
        return {
            "config": to_dict(self.config),
            "inputs": {
                "tokenizer": self.tokenizer.fingerprint,
                "chat_template": fingerprint_of(self._chat_template()),
                "data": self.loader.source.fingerprint,
                "dtype": jax.numpy.dtype(self.program.model.dtype).name,
            },
            "samples_read": step * self.config.batch_size,
        }

    def initial_params(self, names: Collection[str] | None = None) -> dict:
        """Returns the parameters of step 0, nested dict, deterministically.

        Args:
          names: as for `initialization.initial_params`.

        Raises:
          MissingInputError, CheckpointError: as `initialization.initial_params`.
          DataError: whiten_patches, and no image can be read.
        """
        params = initial_params(
            self._resolved,
            self.program.model,
            self.program.abstract_params,
            self.loader.spec,
            self.tokenizer.fingerprint,
            names,
        )
        if self.config.whiten_patches and "embedding" in params.get("img", {}):
            # In the order of the files, and not shuffled: a function of the data alone.
            images = [*itertools.islice(self._images(), _WHITENING_IMAGES)]
            if not images:
                raise DataError(
                    f"config.whiten_patches: no image of {self.config.data.source} can "
                    "be read; run `python -m hive_jax.prepare_data check`"
                )
            params = whiten_patch_embedding(params, np.stack(images))
        return params

    def _images(self) -> Iterator[np.ndarray]:
        """Yields the readable images of the train split, in its own order."""
        for index in range(len(self.loader.source)):
            with contextlib.suppress(InvalidSample):
                yield self.loader.image(index)

    def _compile_ahead(self, step: int) -> None:
        """Starts to compile the train step after `step`, then the validation, in a
        thread, if this run is not finished."""
        # A job of several processes compiles when all do; see `compile_together`.
        if jax.process_count() > 1 or step >= self.config.total_steps:
            return
        accumulation = self.config.gradient_accumulation_steps
        batch = self._abstract_batch(self.loader, step * accumulation)
        self.program.train_step.compile_ahead(
            self.program.abstract_state, (batch,) * accumulation
        )
        batch = self._abstract_batch(self.validation, 0)
        self.program.eval_step.compile_ahead(self.program.abstract_params, batch)

    def _abstract_batch(self, loader: Loader, step: int) -> Batch:
        return sharding.with_shardings(loader.spec_of(step), loader.sharding)

    def start(self) -> train_step.TrainState:
        """Returns the state of step 0."""
        self._compile_ahead(0)
        return self.program.start(self.initial_params())

    def restore(
        self, checkpoints: Checkpoints, allow_config_change: bool
    ) -> train_step.TrainState | None:
        """Returns the state of the newest good checkpoint; None if there is none.

        Args:
          checkpoints: of the workdir.
          allow_config_change: resume although the config, tokenizer or data changed.

        Raises:
          CheckpointError: the checkpoint is of another config, tokenizer or data, and
            each changed key is named; or no checkpoint is good.
        """
        if checkpoints.latest_step() is None:
            return None
        meta = checkpoints.read_meta()
        # Through JSON as the checkpoint's was: tuples become lists.
        current = json.loads(json.dumps(self.meta(0)))
        # A resumed run gives the figures of an undisturbed one, which depend on all
        # keys but those that `differences` leaves out.
        changed = differences(meta["config"], current["config"])
        changed += differences(meta["inputs"], current["inputs"], "inputs.")
        if changed and not allow_config_change:
            listed = "\n  ".join(changed)
            raise CheckpointError(
                f"this run is not the one in {checkpoints.directory} "
                f"(checkpoint -> now):\n  {listed}\nUse the same values, another "
                "workdir, or allow_config_change to resume with the new ones."
            )
        # After the refusal above: a process ends after its compilations only.
        self._compile_ahead(meta["step"])
        restored, meta = checkpoints.restore(self.program.abstract_state)
        # The step is stored twice: in the state, and in the metadata.
        assert int(restored.step) == meta["step"]
        log(f"continuing from step {meta['step']} in {checkpoints.directory}")
        if changed:
            log("config changed: " + ", ".join(changed))
        return restored
