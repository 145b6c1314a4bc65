"""All that a config decides, built and checked before anything is trained."""

import json

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import RunConfig, differences, to_dict
from hive_jax.data.loader import Loader
from hive_jax.data.sources import make_source
from hive_jax.data.tokenizer import load_tokenizer, require_fitting
from hive_jax.errors import CheckpointError, ConfigError
from hive_jax.training import objectives, report, sharding, state, validation
from hive_jax.training import optimizer as optimizers
from hive_jax.training.checkpoints import Checkpoints
from hive_jax.training.initial import abstract_params, initial_params
from hive_jax.training.metrics import say


class Run:
    """Model, data, optimizer and compiled steps of a config.

    Attributes:
      loader, validation: batches of the two splits.
      validation_batches: of them in one evaluation.
      abstract_state: the TrainState as shapes, dtypes and shardings.
      schedule: step -> learning rate.
      train_step: (state, parts) -> (state, metrics); the state is donated.
      eval_step: (params, batch) -> sums.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.mesh = sharding.make_mesh(config.mesh)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self._check_vocabulary()
        part_size = config.batch_size // config.accumulate
        self.loader = self._loader("train", config.seed, part_size)
        # Fewer than part_size only for the smallest sets; at least two, for each
        # sample is also shown its neighbour's image.
        wanted = max(2, min(part_size, config.data.validation_size))
        size = sharding.round_up(self.mesh, wanted)
        self.validation = self._loader("validation", None, size)
        self.validation_batches = max(1, config.data.validation_size // size)

        self.model = objectives.build_model(config)
        self.abstract_params = abstract_params(self.model, self.loader.spec, self.mesh)
        shapes = flatten_dict(self.abstract_params, sep="/")
        self.assigned = optimizers.assign_rules(
            shapes,
            config.rules,
            lambda: objectives.names_under_all_fusions(config, self.loader.spec),
        )
        self.optimizer = optimizers.make_optimizer(
            config.optimizer, config.total_steps, self.assigned
        )
        self.schedule = optimizers.learning_rate(config.optimizer, config.total_steps)
        self.parameter_table = report.parameter_table(
            shapes, self.assigned, config.optimizer.peak_lr
        )
        self._compile_steps()

    def _check_vocabulary(self) -> None:
        config, tokenizer = self.config, self.tokenizer
        contrastive = config.objective == "contrastive"
        part = config.text_tower if contrastive else config.model.decoder
        require_fitting(tokenizer, config.data.tokenizer, part.vocab_size)
        if contrastive and part.num_tokens != config.data.num_tokens:
            raise ConfigError(
                f"config.text_tower.num_tokens is {part.num_tokens}; expected "
                f"data.num_tokens = {config.data.num_tokens}"
            )

    def _loader(self, split: str, shuffle_seed: int | None, batch_size: int) -> Loader:
        config = self.config
        source = make_source(
            config.data,
            split,
            image_size=config.model.encoder.image_size,
            with_image=(
                config.objective == "contrastive" or config.model.fusion != "none"
            ),
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
        abstract = jax.eval_shape(self._init_state, self.abstract_params)
        self._shardings = state.state_shardings(self.mesh, abstract, self.optimizer)
        self.abstract_state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            abstract,
            self._shardings,
        )
        everywhere = sharding.replicated(self.mesh)
        self.train_step = jax.jit(
            state.make_train_step(self.model, self.optimizer, self.assigned),
            donate_argnums=0,
            out_shardings=(self._shardings, everywhere),
        )
        self.eval_step = jax.jit(
            validation.make_eval_step(self.model), out_shardings=everywhere
        )

    def _init_state(self, params: dict) -> state.TrainState:
        return state.init_state(params, self.optimizer, self.assigned)

    def meta(self, step: int) -> dict:
        """What a checkpoint says of itself: the config, fingerprints of what else
        the numbers depend on, and the position in the data."""
        return {
            "config": to_dict(self.config),
            "inputs": {
                "tokenizer": self.tokenizer.fingerprint,
                "data": self.loader.source.fingerprint,
                "dtype": jax.numpy.dtype(self.model.dtype).name,
            },
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
            self.tokenizer.fingerprint,
            sample_images,
        )

    def start(self) -> state.TrainState:
        """The state of step 0."""
        init = jax.jit(
            self._init_state, out_shardings=self._shardings, donate_argnums=0
        )
        return init(self.initial_params())

    def restore(
        self, checkpoints: Checkpoints, allow_config_change: bool
    ) -> state.TrainState | None:
        """The newest good checkpoint's state, or None where there is none.

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
                f"--workdir, or --allow_config_change to go on with the new ones."
            )
        restored, meta = checkpoints.restore(self.abstract_state)
        assert int(restored.step) == meta["step"]
        say(f"continuing from step {meta['step']} in {checkpoints.directory}")
        if changed:
            say("config changed: " + ", ".join(changed))
        return restored
