"""A stack of equal blocks with their parameters stacked along a leading axis.

One parameter tree serves two programs: a scan over layers (compiles fast, one
block's code) and an unrolled loop. Stacks are cut at given layers, so that the
caller can read or change the residual stream there.

An unrolled program may be given its layers apart, an array for each. To it a stack is a
detour: it would copy every layer's weights out of one, and gradients into another.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
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
class Apart:
    """A leaf of a stacked tree whose layers are arrays of their own, or apart again."""

    layers: tuple["jax.Array | Apart", ...]

    def __getitem__(self, number: int) -> "jax.Array | Apart":
        return self.layers[number]


def is_apart(leaf) -> bool:
    return isinstance(leaf, Apart)


def take_apart(leaf: jax.Array, axes: int = 1) -> jax.Array | Apart:
    """[L, ...] -> L arrays [...]; with 2 axes [L, M, ...] -> L times M arrays."""
    if not axes:
        return leaf
    pieces = jax.lax.split(leaf, (1,) * leaf.shape[0], axis=0)
    return Apart(tuple(take_apart(piece[0], axes - 1) for piece in pieces))


def axes_apart(leaf) -> int:
    """How many leading axes of a leaf have been taken apart."""
    return 1 + axes_apart(leaf[0]) if is_apart(leaf) else 0


def put_together(tree):
    """A tree with every `Apart` stacked again."""

    def stacked(leaf):
        return jnp.stack([*map(stacked, leaf.layers)]) if is_apart(leaf) else leaf

    return jax.tree.map(stacked, tree, is_leaf=is_apart)


def parameters(module: nn.Module, name: str, init: Callable):
    """The stacked parameters of a module, as `module.param` has them; those that are
    given with their layers apart are left so."""
    if module.has_variable("params", name):
        given = module.get_variable("params", name)
        if any(map(is_apart, jax.tree.leaves(given, is_leaf=is_apart))):
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
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]

    def pieces_of(leaf):
        if is_apart(leaf):
            bounds = zip(starts, ends, strict=True)
            return [Apart(leaf.layers[start:end]) for start, end in bounds]
        return jax.lax.split(leaf, sizes, axis=0)

    leaves, treedef = jax.tree.flatten(stacked, is_leaf=is_apart)
    pieces = zip(*map(pieces_of, leaves), strict=True)
    return [treedef.unflatten(piece) for piece in pieces]


def unstack(stacked) -> list:
    """One tree for each layer of a stacked tree."""
    leaves, treedef = jax.tree.flatten(stacked, is_leaf=is_apart)
    apart = [leaf if is_apart(leaf) else take_apart(leaf) for leaf in leaves]
    layers = zip(*(leaf.layers for leaf in apart), strict=True)
    return [treedef.unflatten(layer) for layer in layers]


def run(
    apply: Callable, stacked, x: jax.Array, *, scan: bool, remat: str = "none"
) -> jax.Array:
    """Sends x through all layers: x = apply(layer, x) for each layer in order.

    Args:
      apply: (one layer's slice of `stacked`, x) -> x.
      stacked: any tree whose leaves have the layers on axis 0, or apart.
      scan: one compiled block and `lax.scan`, or unrolled code.
      remat: a key of REMAT_POLICIES.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat is {remat!r}; expected one of {list(REMAT_POLICIES)}")
    if REMAT_POLICIES[remat] is not None:
        apply = jax.checkpoint(apply, policy=REMAT_POLICIES[remat])
    if scan:
        stacked = put_together(stacked)
        x, _ = jax.lax.scan(lambda x, layer: (apply(layer, x), None), x, stacked)
        return x
    for layer in unstack(stacked):
        x = apply(layer, x)
    return x
