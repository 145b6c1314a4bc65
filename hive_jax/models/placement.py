"""Sharding constraints of a model, and the application of a block under them."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax


def _identity(x):
    return x


@dataclasses.dataclass(frozen=True)
class Placement:
    """Sharding constraints of a model on several devices.

    Without them, a compiler that finds weights and batch sharded over the same devices
    (fsdp) may shard the computation like the weights, with the whole batch on every
    device. hive_jax/training/sharding.py makes the constraints of a mesh.

    Attributes:
      shard_activations: constrains activations [B, ...] to be sharded over the batch.
      gather_params: all-gathers a layer's parameter tree for the layer's computation,
        with kernels in the dtype of the computation.
    """

    shard_activations: Callable[[jax.Array], jax.Array] = _identity
    gather_params: Callable[[dict], dict] = _identity


ONE_DEVICE = Placement()


@functools.partial(
    jax.jit, static_argnums=(0, 1), static_argnames="method", inline=True
)
def apply_block(block: nn.Module, placement: Placement, params, *inputs, method=None):
    """Applies a block to the parameters of one layer, gathered for it.

    Blocks of equal configuration and shapes are traced once in a process, and inlined:
    the compiled program is that of plain calls.

    Args:
      block: without a parent, because the parameters are declared elsewhere.
      placement: sharding constraints.
      params: of one layer.
      *inputs: arrays.
      method: name of the method, by default `__call__`.
    """
    variables = {"params": placement.gather_params(params)}
    return block.apply(variables, *inputs, method=method)
