"""A stack of equal blocks with their parameters stacked along a leading axis.

One parameter tree serves two programs: a scan over layers (compiles fast, one
block's code) and an unrolled loop. Stacks are cut at given layers, so that the
caller can read or change the residual stream there.

Decoding may be given its layers unstacked: a loop over tokens would otherwise copy each
layer's weights out of the stack at every step.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
from jax.ad_checkpoint import checkpoint_policies

# What a rematerialised block keeps for the backward pass.
REMAT_POLICIES = {
    "none": None,  # keep everything: no rematerialisation
    "dots": checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a tower runs, not what it is.

    Attributes:
      scan: one compiled block and `lax.scan` over layers, which compiles fast, or
        unrolled code.
      remat: what the backward pass keeps of a block, a key of REMAT_POLICIES.
      flash: use cuDNN's flash attention where it serves the shapes.
    """

    scan: bool = False
    remat: str = "none"
    flash: bool = True


@dataclasses.dataclass(frozen=True)
class ModelExecution:
    """How each tower of a model runs."""

    encoder: Execution = Execution()
    decoder: Execution = Execution()
    text_tower: Execution = Execution()


_SCAN = Execution(scan=True)
# Traces and compiles fastest.
SCANNED = ModelExecution(_SCAN, _SCAN, _SCAN)


@flax.struct.dataclass
class UnstackedLayers:
    """Layers with a parameter tree each, in place of a tree with stacked leaves."""

    layers: tuple

    def __getitem__(self, index):
        return self.layers[index]


def unstacked(tree) -> UnstackedLayers:
    """A tree of leaves [L, ...] -> L trees, each in arrays of its own."""
    return UnstackedLayers(tuple(unstack(tree)))


def parameters(module: nn.Module, name: str, init: Callable):
    """A module's stacked parameters: `module.param`, or UnstackedLayers as given.

    Args:
      module: a module in its setup.
      name: of the parameters.
      init: initializer of the stacked parameters.
    """
    if module.has_variable("params", name):
        given = module.get_variable("params", name)
        if isinstance(given, UnstackedLayers):
            return given
    return module.param(name, init)


def stacked_init(block: nn.Module, depth: int, *example) -> Callable:
    """An initializer rng -> the parameters of `depth` blocks, stacked on axis 0."""

    def init(rng: jax.Array):
        def one(key):
            return block.init(key, *example)["params"]

        return jax.vmap(one)(jax.random.split(rng, depth))

    return init


def cut(stacked, ends: Sequence[int]) -> list:
    """Splits a stacked tree after each layer in `ends` (increasing, ending at depth).

    cut(tree of 8 layers, (2, 5, 8)) -> trees of 2, 3 and 3 layers. `lax.split` is
    used because its gradient is one concatenation, where slicing would add up a
    zero-padded copy of the whole stack for every piece.
    """
    starts = (0, *ends[:-1])
    if isinstance(stacked, UnstackedLayers):
        bounds = zip(starts, ends, strict=True)
        return [UnstackedLayers(stacked[start:end]) for start, end in bounds]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    leaves, treedef = jax.tree.flatten(stacked)
    pieces = zip(*(jax.lax.split(leaf, sizes, axis=0) for leaf in leaves), strict=True)
    return [treedef.unflatten(piece) for piece in pieces]


def unstack(stacked) -> list:
    """One tree for each layer of a stacked tree."""
    if isinstance(stacked, UnstackedLayers):
        return list(stacked.layers)
    leaves, treedef = jax.tree.flatten(stacked)
    layers = zip(*map(_split_leaf, leaves), strict=True)
    return [treedef.unflatten(layer) for layer in layers]


def _split_leaf(leaf: jax.Array) -> list[jax.Array]:
    """[L, ...] -> L arrays [...]."""
    pieces = jax.lax.split(leaf, (1,) * leaf.shape[0], axis=0)
    return [piece[0] for piece in pieces]


def run(
    apply: Callable, stacked, x: jax.Array, *, scan: bool, remat: str = "none"
) -> jax.Array:
    """Sends x through all layers: x = apply(layer, x) for each layer in order.

    Args:
      apply: (one layer's slice of `stacked`, x) -> x.
      stacked: any tree whose leaves have the layers on axis 0.
      scan: one compiled block and `lax.scan`, or unrolled code.
      remat: a key of REMAT_POLICIES.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat is {remat!r}; expected one of {list(REMAT_POLICIES)}")
    if REMAT_POLICIES[remat] is not None:
        apply = jax.checkpoint(apply, policy=REMAT_POLICIES[remat])
    if scan:
        x, _ = jax.lax.scan(lambda x, layer: (apply(layer, x), None), x, stacked)
        return x
    for layer in unstack(stacked):
        x = apply(layer, x)
    return x
