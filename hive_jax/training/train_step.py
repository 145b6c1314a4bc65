"""The train state, the jitted train step, and the program of a config on a mesh.

The trainer runs these steps; the plan and the benchmarks compile the very same ones.
"""

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from hive_jax.config import Rule, RunConfig
from hive_jax.data.batch import Batch
from hive_jax.training import objectives, sharding, validation
from hive_jax.training import optimizer as optimizers
from hive_jax.training.compiled_ahead import CompiledAhead
from hive_jax.training.objectives import make_loss


@flax.struct.dataclass
class TrainState:
    """State that a train step updates.

    Attributes:
      step: int32[], number of updates done.
      params: nested dict, trainable and frozen leaves.
      opt_state: optimizer state of the trainable leaves only.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def init_state(params: dict, optimizer, assigned: Mapping[str, Rule]) -> TrainState:
    """Returns the state of step 0.

    Args:
      params: nested dict of all parameters.
      optimizer: from `make_optimizer`; it sees the trainable leaves as a flat dict.
      assigned: rule of each parameter, from `assign_rules`.
    """
    trainable, _ = optimizers.split(flatten_dict(params, sep="/"), assigned)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trainable))


def state_shardings(mesh, state: TrainState, optimizer) -> TrainState:
    """Returns a NamedSharding for each leaf of an abstract state.

    Args:
      mesh: the device mesh.
      state: shapes and dtypes.
      optimizer: the transformation that made `state.opt_state`. Its moments are
        sharded like their parameters, step counts are replicated.
    """
    params = {
        name: sharding.param_sharding(mesh, name, leaf.shape)
        for name, leaf in flatten_dict(state.params, sep="/").items()
    }
    replicated = sharding.replicated(mesh)
    # optax knows which leaves of its state are shaped like parameters.
    opt_state = optax.tree.map_params(
        optimizer,
        lambda leaf, param_sharding: param_sharding,
        state.opt_state,
        # Frozen parameters have no moments.
        {name: params[name] for name in _first_moments(state.opt_state)},
        transform_non_params=lambda leaf: replicated,
    )
    return TrainState(replicated, unflatten_dict(params, sep="/"), opt_state)


def _first_moments(opt_state) -> dict:
    """Returns Adam's first moments, a flat dict by name of the trainable leaves."""
    return next(s.mu for s in opt_state if isinstance(s, optax.ScaleByAdamState))


def make_train_step(
    model, optimizer, assigned: Mapping[str, Rule], mesh: Mesh
) -> Callable:
    """Returns the pure function (state, micro_batches) -> (state, metrics).

    `micro_batches` is a tuple of batches, processed one after the other. Their losses
    and gradients are summed and divided once by the total weight, so the result equals
    that of one large batch. Only trainable leaves are differentiated, clipped, measured
    and updated.

    Args:
      model: from `objectives.build_model`.
      optimizer: from `make_optimizer`.
      assigned: rule of each parameter, from `assign_rules`.
      mesh: the device mesh.
    """
    loss_fn = make_loss(model, mesh)

    def step(state: TrainState, micro_batches: tuple[Batch, ...]):
        flat = flatten_dict(state.params, sep="/")
        trainable, frozen = optimizers.split(flat, assigned)

        # Differentiated in its first argument alone: XLA then computes no gradient
        # and stores no activation for frozen leaves.
        def loss_with_frozen(trainable, batch):
            params = unflatten_dict({**frozen, **trainable}, sep="/")
            return loss_fn(params, batch)

        total, weight, grads = _accumulate(loss_with_frozen, trainable, micro_batches)
        # A batch without a supervised token has weight 0 and zero gradients.
        divisor = jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        # The optimizer clips; the norms in the metrics are those before clipping.
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params = unflatten_dict({**frozen, **trainable}, sep="/")
        metrics = {
            "loss": total / divisor,
            "loss_weight": weight,  # of captions: the number of supervised tokens
            **_norms(grads, "grad_norm"),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _accumulate(loss_fn: Callable, trainable: dict, micro_batches: tuple[Batch, ...]):
    """Returns the sums of loss, weight and gradients over micro-batches.

    A scan rather than a Python loop: the program is compiled once and holds the
    activations of one micro-batch at a time.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def add(sums, micro_batch):
        (loss, weight), grads = value_and_grad(trainable, micro_batch)
        return jax.tree.map(jnp.add, sums, (loss, weight, grads)), None

    # A single one needs no accumulator, which would be a second set of gradients.
    if len(micro_batches) == 1:
        (loss, weight), grads = value_and_grad(trainable, micro_batches[0])
        return loss, weight, grads
    # Gradients add up in the dtype of the parameters, float32.
    zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
    # Micro-batches of one step have one shape: they are of the same length bucket.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *micro_batches)
    return jax.lax.scan(add, zero, stacked)[0]


def _norms(tree: Mapping, name: str) -> dict:
    """Returns the global norm and the norm of each branch (img, llm, fusion, ...)."""
    branches = sorted({key.split("/")[0] for key in tree})
    norms = {
        f"{name}/{branch}": optax.tree.norm(
            [leaf for key, leaf in tree.items() if key.split("/")[0] == branch]
        )
        for branch in branches
    }
    return {name: optax.tree.norm(tree), **norms}


class Program:
    """Model, optimizer and compiled steps of a config on a mesh; no data, no weights.

    Args:
      config: resolved config.
      mesh: the device mesh.
      num_tags: number of token tags in validation batches; see `Batch.tag`.

    Attributes:
      batch: abstract micro-batch, sharded over the mesh.
      abstract_params, abstract_state: shapes, dtypes and shardings, as stored in
        checkpoints.
      assigned: name -> rule of each parameter.
      schedule: step -> learning rate.
      train_step: jitted (state, micro_batches) -> (state, metrics); donates the state.
      eval_step: jitted (params, batch) -> sums.

    Raises:
      ConfigError: the mesh cannot shard the batch, or the rules do not fit.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, num_tags: int = 0):
        self.config, self.mesh = config, mesh
        micro_batch = config.batch_size // config.gradient_accumulation_steps
        self.batch = sharding.with_shardings(
            Batch.spec(micro_batch, config.data.num_tokens, config.model.image_size),
            sharding.batch_sharding(mesh, micro_batch),
        )
        # Shapes and shardings alone from here on: no parameter exists before `start`.
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
        replicated = sharding.replicated(mesh)
        # The donated state's buffers are reused for the new one, which therefore has
        # the same shardings: without donation two states would have to fit.
        train_step = make_train_step(self.model, self.optimizer, self.assigned, mesh)
        outputs = self._shardings, replicated
        self.train_step = CompiledAhead(
            jax.jit(train_step, donate_argnums=0, out_shardings=outputs)
        )
        eval_step = validation.make_eval_step(self.model, num_tags)
        # Replicated sums, which every process can read.
        self.eval_step = CompiledAhead(jax.jit(eval_step, out_shardings=replicated))

    @property
    def parameter_table(self) -> str:
        """Text table of parameter groups, trainable or frozen; see `parameter_table`."""
        peak_lr = self.config.optimizer.peak_lr
        return optimizers.parameter_table(self._shapes, self.assigned, peak_lr)

    def start(self, params: dict) -> TrainState:
        """Returns the state of step 0. It shares its arrays with `params`: do not use
        them after the first train step, which donates them."""
        # Adam's state starts with zeros. Compiling `init_state` would take longer than
        # writing them; they are created sharded, on no device as a whole.
        step, opt_state = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
            (self.abstract_state.step, self.abstract_state.opt_state),
        )
        return TrainState(step, params, opt_state)

    def trainable(self, params: dict) -> dict:
        """Returns the trainable leaves as a flat dict, as the optimizer takes them."""
        return optimizers.split(flatten_dict(params, sep="/"), self.assigned)[0]

    def lower_train_step(self) -> jax.stages.Lowered:
        """Lowers the train step for abstract inputs; nothing is computed."""
        micro_batches = (self.batch,) * self.config.gradient_accumulation_steps
        return self.train_step.lower(self.abstract_state, micro_batches)

    def _abstract(self, init) -> TrainState:
        """Returns shapes, dtypes and shardings of the state that `init` returns."""
        # First the shapes: the shardings of the moments follow from them.
        shapes = jax.eval_shape(init, self.abstract_params)
        shardings = state_shardings(self.mesh, shapes, self.optimizer)
        return sharding.with_shardings(shapes, shardings)

    def _init_state(self, params: dict) -> TrainState:
        return init_state(params, self.optimizer, self.assigned)
