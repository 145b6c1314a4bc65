"""Names of the leaves of a pytree, and readable differences between two pytrees.

A leaf is named by its path with slashes: `params/img/embedding/kernel`,
`opt_state/1/count`. The same names appear in rules, fingerprints and messages.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hive_jax.errors import CheckpointError

_MAX_LISTED = 20


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
    """Returns a tree like `tree` with the leaves named in `leaves`."""
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
    if isinstance(leaf, str):
        return leaf
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    shape = leaf.shape if hasattr(leaf, "shape") else jnp.shape(leaf)
    return f"{dtype}{list(shape)}"


def parse_description(text: str) -> jax.ShapeDtypeStruct:
    """Inverse of `describe` for one leaf: "float32[8, 3]" -> shape and dtype."""
    dtype, _, shape = text.partition("[")
    sizes = [int(size) for size in shape.rstrip("]").split(",") if size.strip()]
    return jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(dtype))


def compare(expected: Any, found: Any, what: str) -> list[str]:
    """Returns one line for each leaf that differs in presence, shape or dtype.

    Args:
      expected: tree as this run needs it (arrays or `jax.ShapeDtypeStruct`).
      found: tree as it was stored, or its description.
      what: where `found` comes from ("checkpoint 1200"), for the message.

    Returns:
      Lines such as `head/bias: expected float32[8], found float32[9]`; empty if
      the trees agree.
    """
    expected, found = describe(expected), describe(found)
    lines = []
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name not in found:
            lines.append(f"{name}: expected {expected[name]}, missing in {what}")
        elif name not in expected:
            lines.append(f"{name}: unexpected {found[name]} in {what}")
        elif expected[name] != found[name]:
            lines.append(f"{name}: expected {expected[name]}, found {found[name]}")
    return lines


def require_equal(expected: Any, found: Any, what: str) -> None:
    """Raises CheckpointError with the differences of `compare`, if there are any."""
    lines = compare(expected, found, what)
    if not lines:
        return
    listed = "\n".join(f"  {line}" for line in lines[:_MAX_LISTED])
    if len(lines) > _MAX_LISTED:
        listed += f"\n  ... and {len(lines) - _MAX_LISTED} more"
    raise CheckpointError(
        f"{what} does not fit this run, {len(lines)} leaves differ "
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
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    result = {}
    for name, leaf in leaves.items():
        sharding = leaf.sharding or one_device
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise CheckpointError(f"{name}: {str(error).splitlines()[0]}") from error
        result[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return result
