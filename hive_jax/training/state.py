"""The train state, how it starts, and the one train step."""

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from hive_jax.config import Rule
from hive_jax.data.types import Batch
from hive_jax.training import optimizer as optimizers
from hive_jax.training import sharding
from hive_jax.training.objectives import make_loss


@flax.struct.dataclass
class TrainState:
    """step: int32[], updates done; params: nested dict, trainable and frozen;
    opt_state: of the trainable leaves alone."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def init_state(params: dict, optimizer, assigned: Mapping[str, Rule]) -> TrainState:
    """Step 0; the optimizer sees the trainable leaves as a flat dict."""
    trainable, _ = optimizers.split(flatten_dict(params, sep="/"), assigned)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trainable))


def state_shardings(mesh, state: TrainState, optimizer) -> TrainState:
    """A NamedSharding for each leaf of an abstract state."""
    flat = flatten_dict(state.params, sep="/")

    def place(name, leaf):
        return sharding.param_sharding(mesh, name, leaf.shape)

    params = {name: place(name, leaf) for name, leaf in flat.items()}
    everywhere = sharding.replicated(mesh)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda leaf, where: where,
        state.opt_state,
        {name: params[name] for name in _moments(state.opt_state)},
        transform_non_params=lambda leaf: everywhere,
    )
    return TrainState(everywhere, unflatten_dict(params, sep="/"), opt_state)


def _moments(opt_state) -> dict:
    """The first moments, a flat dict by the names of the trainable leaves."""
    return next(s.mu for s in opt_state if isinstance(s, optax.ScaleByAdamState))


def make_train_step(
    model, optimizer, assigned: Mapping[str, Rule], mesh: Mesh
) -> Callable:
    """The pure step (state, parts) -> (state, metrics).

    `parts` is a tuple of batches, sent through one after the other; their losses are
    summed and divided once, so that a batch in parts is the batch in one. Only the
    trainable leaves are differentiated, clipped, measured and updated.
    """
    loss_fn = make_loss(model, mesh)

    def step(state: TrainState, parts: tuple[Batch, ...]):
        flat = flatten_dict(state.params, sep="/")
        trainable, frozen = optimizers.split(flat, assigned)

        def loss_of(trainable, batch):
            params = unflatten_dict({**frozen, **trainable}, sep="/")
            return loss_fn(params, batch)

        total, weight, grads = _accumulated(loss_of, trainable, parts)
        supervised, weight = weight, jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params = unflatten_dict({**frozen, **trainable}, sep="/")
        metrics = {
            "loss": total / weight,
            "loss_weight": supervised,  # of captions: the number of supervised tokens
            **_norms(grads, "grad_norm"),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _accumulated(loss_of: Callable, trainable: dict, parts: tuple[Batch, ...]):
    """Sums of loss, weight and gradients over the parts of a batch."""
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def add(carry, part):
        (loss, weight), grads = value_and_grad(trainable, part)
        return jax.tree.map(jnp.add, carry, (loss, weight, grads)), None

    if len(parts) == 1:
        (loss, weight), grads = value_and_grad(trainable, parts[0])
        return loss, weight, grads
    zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return jax.lax.scan(add, zero, stacked)[0]


def _norms(tree: Mapping, name: str) -> dict:
    """The global norm, and that of each branch (img, llm, fusion, ...)."""
    branches = sorted({key.split("/")[0] for key in tree})
    norms = {
        f"{name}/{branch}": optax.tree.norm(
            [leaf for key, leaf in tree.items() if key.split("/")[0] == branch]
        )
        for branch in branches
    }
    return {name: optax.tree.norm(tree), **norms}
