"""Names of the leaves of a pytree, and readable differences between two pytrees.

A leaf is named by its path with slashes: `params/img/embedding/kernel`,
`opt_state/1/count`. The same names appear in rules, fingerprints and messages.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from hive_jax.errors import CheckpointError

_MAX_LISTED = 20  # differing leaves in a message


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of `tree` by name, in the order of `jax.tree.leaves`.

    Works for nested dicts, dataclasses of flax.struct and states of optax. Empty
    nodes (`optax.EmptyState`, `optax.MaskedNode`, None) have no leaves.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def unflatten(tree: Any, leaves: dict[str, Any]) -> Any:
    """Returns a tree with the structure of one and the leaves of another.

    Args:
      tree: pytree whose structure counts.
      leaves: leaf of each name, as from `flatten`.
    """
    return jax.tree.unflatten(
        jax.tree.structure(tree), [leaves[name] for name in flatten(tree)]
    )


def describe(tree: Any) -> dict[str, str]:
    """Returns `dtype[shape]` of every leaf by name: {"head/bias": "float32[8]"}.

    Leaves are arrays, `jax.ShapeDtypeStruct`, scalars, or descriptions read back
    from a file, which describe themselves.
    """
    return {name: _describe_leaf(leaf) for name, leaf in flatten(tree).items()}


def _describe_leaf(leaf: Any) -> str:
    # A description of a checkpoint's metadata.
    if isinstance(leaf, str):
        return leaf
    # Python scalars have neither attribute.
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    shape = leaf.shape if hasattr(leaf, "shape") else jnp.shape(leaf)
    return f"{dtype}{list(shape)}"


def parse_description(text: str) -> jax.ShapeDtypeStruct:
    """Inverse of `describe` for one leaf: "float32[8, 3]" -> shape and dtype."""
    dtype, _, shape = text.partition("[")
    sizes = [int(size) for size in shape.rstrip("]").split(",") if size.strip()]
    return jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(dtype))


def compare(expected: Any, stored: Any, origin: str) -> list[str]:
    """Returns one line for each leaf that differs in presence, shape or dtype.

    Args:
      expected: tree of the run: arrays or `jax.ShapeDtypeStruct`.
      stored: tree of the checkpoint, or its description.
      origin: name of the checkpoint for messages, e.g. "checkpoint 1200".

    Returns:
      Lines such as `head/bias: expected float32[8], got float32[9]`; empty if the
      trees agree.
    """
    expected, stored = describe(expected), describe(stored)
    lines = []
    # In the order of the model, then what only the checkpoint has.
    for name in [*expected, *(name for name in stored if name not in expected)]:
        if name not in stored:
            lines.append(f"{name}: expected {expected[name]}, missing in {origin}")
        elif name not in expected:
            lines.append(f"{name}: unexpected {stored[name]} in {origin}")
        elif expected[name] != stored[name]:
            lines.append(f"{name}: expected {expected[name]}, got {stored[name]}")
    return lines


def require_equal(expected: Any, stored: Any, origin: str) -> None:
    """Requires that two trees agree in names, shapes and dtypes.

    Args:
      expected: as for `compare`.
      stored: as for `compare`.
      origin: as for `compare`.

    Raises:
      CheckpointError: with the differences, at most 20 of them.
    """
    lines = compare(expected, stored, origin)
    if not lines:
        return
    listed = "\n".join(f"  {line}" for line in lines[:_MAX_LISTED])
    if len(lines) > _MAX_LISTED:
        listed += f"\n  ... and {len(lines) - _MAX_LISTED} more"
    raise CheckpointError(
        f"{origin} does not fit this run, {len(lines)} leaves differ "
        f"(nothing was loaded):\n{listed}\n"
        "Use the model and optimizer configuration that wrote it."
    )


def with_shardings(leaves: dict) -> dict:
    """Gives every abstract leaf a sharding, one device by default.

    Without one, Orbax falls back to the devices that saved the leaf; a sharding that
    does not divide the shape would look like corruption.

    Raises:
      CheckpointError: a sharding does not divide its leaf.
    """
    # A local device: this process cannot address those of others.
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    result = {}
    for name, leaf in leaves.items():
        sharding = leaf.sharding or one_device
        try:
            sharding.shard_shape(leaf.shape)
        # JAX's first line says which dimension; the rest describes the sharding.
        except ValueError as error:
            raise CheckpointError(f"{name}: {str(error).splitlines()[0]}") from error
        result[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return result


def to_items(leaves: dict) -> dict[str, dict]:
    """Returns the Orbax items, nested dicts, of leaves by name. Parameters are an item
    of their own, so that the next stage can read them alone."""
    prefix = "params/"
    params = {k[len(prefix) :]: v for k, v in leaves.items() if k.startswith(prefix)}
    others = {k: v for k, v in leaves.items() if not k.startswith(prefix)}
    items = {"params": params, "optimizer": others}
    return {
        name: traverse_util.unflatten_dict(item, sep="/")
        for name, item in items.items()
        if item
    }


def from_items(items: dict) -> dict:
    """Returns the leaves by name of Orbax items, the inverse of `to_items`."""
    params = flatten(items.get("params", {}))
    return flatten(items.get("optimizer", {})) | {
        f"params/{name}": leaf for name, leaf in params.items()
    }


def first_names(names: list[str]) -> str:
    """Returns the first three names and the number of others, for messages."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
