"""Transformer layers with their parameters stacked along a leading axis.

One parameter tree serves two programs: a scan over layers, which compiles one block, and
an unrolled loop. Stacks are split at given layers, so that the caller can read or change
the residual stream there: fusion and the encoder's features need this.

For decoding, layers are unstacked beforehand (`UnstackedLayers`): the loop over tokens
would otherwise copy each layer's weights out of the stack at every step.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
from jax.ad_checkpoint import checkpoint_policies

# For each of execution.REMAT_POLICIES, what the forward pass of a block stores.
_CHECKPOINT_POLICIES = {
    "none": None,  # everything: no rematerialization
    # Results of products with weights, but not attention's [B, N, T, S].
    "dots": checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": checkpoint_policies.nothing_saveable,  # the input of each block alone
}


@flax.struct.dataclass
class UnstackedLayers:
    """A parameter tree for each layer, in place of one tree with stacked leaves."""

    layers: tuple

    def __getitem__(self, index):
        return self.layers[index]


def to_unstacked_layers(stacked) -> UnstackedLayers:
    """Splits a tree of leaves [L, ...] into L trees with arrays of their own."""
    return UnstackedLayers(tuple(unstack(stacked)))


def stacked_params(module: nn.Module, name: str, init: Callable):
    """Declares a module's stacked parameters; UnstackedLayers are accepted too.

    Args:
      module: a module in its setup or compact method.
      name: of the parameters.
      init: initializer of the stacked parameters, rng -> tree.

    Returns:
      The tree with leaves [L, ...], or the UnstackedLayers that `apply` was given.
    """
    # `module.param` would trace `init` again, to compare shapes, in every `apply`; and
    # UnstackedLayers have other shapes.
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init)


def stacked_init(block: nn.Module, depth: int, *example) -> Callable:
    """Returns an initializer of `depth` blocks, rng -> tree of leaves [depth, ...].

    Args:
      block: module of one layer.
      depth: number of layers L.
      *example: inputs of the block, for their shapes.
    """

    def init(rng: jax.Array):
        def init_layer(key):
            return block.init(key, *example)["params"]

        # A key per layer, and vmap rather than a loop: one block is traced.
        return jax.vmap(init_layer)(jax.random.split(rng, depth))

    return init


def split_layers(stacked, ends: Sequence[int]) -> list:
    """Splits a stacked tree into consecutive segments of layers.

    split_layers(tree of 8 layers, (2, 5, 8)) -> trees of 2, 3 and 3 layers

    Args:
      stacked: tree of leaves [L, ...], or UnstackedLayers.
      ends: last layer of each segment, counted from 1, increasing up to L.

    Returns:
      A tree for each segment.
    """
    starts = (0, *ends[:-1])
    if isinstance(stacked, UnstackedLayers):
        bounds = zip(starts, ends, strict=True)
        return [UnstackedLayers(stacked[start:end]) for start, end in bounds]
    # The gradient of `lax.split` is one concatenation; that of slicing would add up a
    # zero-padded copy of the whole stack for every segment.
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    leaves, treedef = jax.tree.flatten(stacked)
    segments = zip(
        *(jax.lax.split(leaf, sizes, axis=0) for leaf in leaves), strict=True
    )
    return [treedef.unflatten(segment) for segment in segments]


def unstack(stacked) -> list:
    """Splits a stacked tree into one tree for each layer."""
    if isinstance(stacked, UnstackedLayers):
        return list(stacked.layers)
    leaves, treedef = jax.tree.flatten(stacked)
    # From a list of layers for each leaf to a list of leaves for each layer.
    layers = zip(*map(_split_leaf, leaves), strict=True)
    return [treedef.unflatten(layer) for layer in layers]


def _split_leaf(leaf: jax.Array) -> list[jax.Array]:
    """Splits [L, ...] into L arrays [...]; by `lax.split`, as in `split_layers`."""
    layers = jax.lax.split(leaf, (1,) * leaf.shape[0], axis=0)
    return [layer[0] for layer in layers]


def run_layers(
    apply: Callable, stacked, x: jax.Array, *, scan: bool, remat: str = "none"
) -> jax.Array:
    """Runs x through all layers: x = apply(layer, x) for each layer in order.

    Args:
      apply: (one layer's slice of `stacked`, x) -> x.
      stacked: any tree whose leaves have the layers on axis 0.
      x: input of the first layer.
      scan: see `Execution`.
      remat: one of REMAT_POLICIES.

    Returns:
      The output of the last layer.

    Raises:
      ValueError: unknown `remat`.
    """
    if remat not in _CHECKPOINT_POLICIES:
        raise ValueError(
            f"remat is {remat!r}; expected one of {list(_CHECKPOINT_POLICIES)}"
        )
    if _CHECKPOINT_POLICIES[remat] is not None:
        # On a CPU this saves memory with `scan` only: XLA merges the recomputation of
        # an unrolled loop with the forward pass.
        apply = jax.checkpoint(apply, policy=_CHECKPOINT_POLICIES[remat])
    if scan:
        # x is the carry; nothing is stacked over layers.
        x, _ = jax.lax.scan(lambda x, layer: (apply(layer, x), None), x, stacked)
        return x
    for layer in unstack(stacked):
        x = apply(layer, x)
    return x
