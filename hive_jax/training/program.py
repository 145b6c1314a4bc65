"""What a config computes on a mesh: model, optimizer and steps. No data, no weights.

The trainer runs these steps; the plan and the benchmarks compile the very same ones.
"""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.models import stack
from hive_jax.training import objectives, report, sharding, state, validation
from hive_jax.training import optimizer as optimizers


class Program:
    """The compiled side of a run.

    Attributes:
      batch: the shapes of one micro-batch, split over the mesh.
      abstract_params, abstract_state: shapes, dtypes and shardings, as checkpoints
        keep them.
      assigned: name -> the rule of each parameter.
      schedule: step -> learning rate.
      train_step: (state, micro-batches) -> (state, metrics), jitted; the state is that of
        `start` or `running`, and donated.
      eval_step: (params, batch) -> sums, jitted.

    Raises:
      ConfigError: the batch cannot be split over the mesh, or the rules do not fit.
    """

    def __init__(self, config: RunConfig, mesh: Mesh):
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
        self.schedule = optimizers.learning_rate(config.optimizer, config.total_steps)
        self.abstract_state = self._abstract(self._init_state)
        self._running = self._abstract(lambda p: self._init_state(self._apart(p)))
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, self._running)
        everywhere = sharding.replicated(mesh)
        self.train_step = jax.jit(
            state.make_train_step(self.model, self.optimizer, self.assigned, mesh),
            donate_argnums=0,
            out_shardings=(self._shardings, everywhere),
        )
        self.eval_step = jax.jit(
            validation.make_eval_step(self.model), out_shardings=everywhere
        )

    @property
    def parameter_table(self) -> str:
        """Parameters of each part, trainable or frozen, with the peak learning rate."""
        peak_lr = self.config.optimizer.peak_lr
        return report.parameter_table(self._shapes, self.assigned, peak_lr)

    def start(self, params: dict) -> state.TrainState:
        """The state of step 0, to train. It takes over those of `params` that are not
        stacks: do not use them afterwards."""
        init = jax.jit(
            lambda params: self._init_state(self._apart(params)),
            out_shardings=self._shardings,
        )
        return init(params)

    def running(self, kept: state.TrainState) -> state.TrainState:
        """A state that was kept, to train. It takes over what is not a stack: do not
        use `kept` afterwards."""

        def take(kept):
            return jax.tree.map(
                lambda to, leaf: stack.take_apart(leaf, stack.axes_apart(to)),
                self._running,
                kept,
                is_leaf=stack.is_apart,
            )

        return jax.jit(take, out_shardings=self._shardings)(kept)

    def kept(self, running: state.TrainState) -> state.TrainState:
        """A state that trains, as checkpoints keep it: layers stacked. What is not a
        stack is shared with it."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return self._put_together(shardings, running)

    def kept_params(self, params: dict) -> dict:
        """The same for parameters alone."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_params)
        return self._put_together(shardings, params)

    def trainable(self, params: dict) -> dict:
        """The leaves that train, a flat dict, as the optimizer takes them."""
        return optimizers.split(flatten_dict(params, sep="/"), self.assigned)[0]

    def lower_train_step(self) -> jax.stages.Lowered:
        """The train step on the shapes of a whole batch; nothing is computed."""
        micro_batches = (self.batch,) * self.config.gradient_accumulation_steps
        return self.train_step.lower(self._running, micro_batches)

    def _put_together(self, shardings, tree):
        """Only stacks are made; what has no layers apart is passed on as it is."""
        if not any(map(stack.is_apart, jax.tree.leaves(tree, is_leaf=stack.is_apart))):
            return tree
        return jax.jit(stack.put_together, out_shardings=shardings)(tree)

    def _apart(self, params: dict) -> dict:
        """Parameters with the layers apart of stacks that no scan reads."""
        execution = self.config.execution
        towers = {
            "img": execution.encoder,
            "llm": execution.decoder,
            "txt": execution.text_tower,
        }
        return layers_apart(params, {b for b, tower in towers.items() if tower.scan})

    def _abstract(self, init) -> state.TrainState:
        """Shapes, dtypes and shardings of the state that `init` makes of parameters."""
        shapes = jax.eval_shape(init, self.abstract_params)
        shardings = state.state_shardings(self.mesh, shapes, self.optimizer)
        return _placed(shapes, shardings)

    def _init_state(self, params: dict) -> state.TrainState:
        return state.init_state(params, self.optimizer, self.assigned)


def layers_apart(params: dict, stacked: set[str]) -> dict:
    """Parameters with the layers apart of all stacks but those of the branches in
    `stacked`, as "img"; for programs that do not scan over layers."""

    def apart(name: str, leaf: jax.Array):
        if name.split("/")[0] in stacked or not optimizers.STACKED.fullmatch(name):
            return leaf
        return stack.take_apart(leaf, 2 if name.endswith("gating_einsum") else 1)

    flat = flatten_dict(params, sep="/")
    return unflatten_dict({n: apart(n, leaf) for n, leaf in flat.items()}, sep="/")


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
