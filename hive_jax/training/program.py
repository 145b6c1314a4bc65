"""What a config computes on a mesh: model, optimizer and steps. No data, no weights.

The trainer runs these steps; the plan and the benchmarks compile the very same ones.
"""

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from hive_jax.config import RunConfig
from hive_jax.data.types import Batch
from hive_jax.training import objectives, optimizer, sharding, state, validation
from hive_jax.training import optimizer as optimizers


class Program:
    """The compiled side of a run.

    Args:
      config: of the run.
      mesh: the devices.
      num_tags: of the validation batches' tokens; see Batch.tag.

    Attributes:
      batch: the shapes of one micro-batch, split over the mesh.
      abstract_params, abstract_state: shapes, dtypes and shardings, as checkpoints
        keep them.
      assigned: name -> the rule of each parameter.
      schedule: step -> learning rate.
      train_step: (state, micro-batches) -> (state, metrics), jitted; the state is
        donated.
      eval_step: (params, batch) -> sums, jitted.

    Raises:
      ConfigError: the batch cannot be split over the mesh, or the rules do not fit.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, num_tags: int = 0):
        self.config, self.mesh = config, mesh
        micro_batch = config.batch_size // config.gradient_accumulation_steps
        self.batch = _placed(
            Batch.spec(micro_batch, config.data.num_tokens, config.model.image_size),
            sharding.batch_sharding(mesh, micro_batch),
        )
        self.model = objectives.build_model(config, mesh)
        self.abstract_params = objectives.abstract_params(self.model, self.batch, mesh)
        self._shapes = flatten_dict(self.abstract_params, sep="/")
        self.assigned = optimizers.assign_rules(
            self._shapes,
            config.rules,
            lambda: objectives.names_under_all_fusions(config, self.batch),
        )
        self.optimizer = optimizers.make_optimizer(
            config.optimizer, config.total_steps, self.assigned
        )
        self.schedule = optimizers.make_schedule(config.optimizer, config.total_steps)
        self.abstract_state = self._abstract(self._init_state)
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        everywhere = sharding.replicated(mesh)
        self.train_step = jax.jit(
            state.make_train_step(self.model, self.optimizer, self.assigned, mesh),
            donate_argnums=0,
            out_shardings=(self._shardings, everywhere),
        )
        self.eval_step = jax.jit(
            validation.make_eval_step(self.model, num_tags), out_shardings=everywhere
        )

    @property
    def parameter_table(self) -> str:
        """Parameters of each part, trainable or frozen, with the peak learning rate."""
        peak_lr = self.config.optimizer.peak_lr
        return optimizer.parameter_table(self._shapes, self.assigned, peak_lr)

    def start(self, params: dict) -> state.TrainState:
        """The train state of step 0. It shares its arrays with `params`: do not use
        these after the first train step, which donates them."""
        return jax.jit(self._init_state, out_shardings=self._shardings)(params)

    def trainable(self, params: dict) -> dict:
        """The leaves that train, a flat dict, as the optimizer takes them."""
        return optimizers.split(flatten_dict(params, sep="/"), self.assigned)[0]

    def lower_train_step(self) -> jax.stages.Lowered:
        """The train step on the shapes of a whole batch; nothing is computed."""
        micro_batches = (self.batch,) * self.config.gradient_accumulation_steps
        return self.train_step.lower(self.abstract_state, micro_batches)

    def _abstract(self, init) -> state.TrainState:
        """Shapes, dtypes and shardings of the state that `init` makes of parameters."""
        shapes = jax.eval_shape(init, self.abstract_params)
        shardings = state.state_shardings(self.mesh, shapes, self.optimizer)
        return _placed(shapes, shardings)

    def _init_state(self, params: dict) -> state.TrainState:
        return state.init_state(params, self.optimizer, self.assigned)


def _placed(tree, shardings):
    """The shapes of a tree with a sharding each, or one sharding for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        shardings,
    )
