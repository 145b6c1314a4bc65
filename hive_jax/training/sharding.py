"""Where arrays live: a mesh of data, fsdp and tensor, and a rule for each parameter.

data     batches are split, parameters repeated
fsdp     batches are split, parameters too (gathered where they are used)
tensor   heads, MLP columns and the vocabulary are split
"""

import re
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hive_jax.config import MeshConfig
from hive_jax.errors import ConfigError
from hive_jax.models.placement import ONE_DEVICE, Placement

# Name -> mesh axis of each of its last dimensions; leading axes (layers,
# connections) are never split. The first match wins, and what matches nothing
# (norms, biases, gates, positions) is repeated everywhere.
_RULES = (
    (r".*/(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r".*/out/kernel", ("tensor", None, "fsdp")),
    (r".*/(Dense_0|linear_1)/kernel", ("fsdp", "tensor")),
    (r".*/(Dense_1|linear_2)/kernel", ("tensor", "fsdp")),
    (r".*/q_einsum/w", ("tensor", "fsdp", None)),
    (r".*/kv_einsum/w", (None, "tensor", "fsdp", None)),
    (r".*/attn_vec_einsum/w", ("tensor", None, "fsdp")),
    (r".*/gating_einsum", (None, "fsdp", "tensor")),
    (r".*/mlp/linear", ("tensor", "fsdp")),
    (r".*/(input_embedding|Embed_0/embedding)", ("tensor", "fsdp")),
    (r".*/embedding/kernel", (None, None, None, "fsdp")),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes, or over the given ones. One axis may
    be -1."""
    shape = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    count = jax.device_count() if devices is None else len(devices)
    free = [axis for axis, size in shape.items() if size == -1]
    fixed = int(np.prod([size for size in shape.values() if size != -1]))
    if len(free) == 1 and fixed >= 1 and count % fixed == 0:
        shape[free[0]] = count // fixed
    if min(shape.values()) < 1 or int(np.prod(list(shape.values()))) != count:
        raise ConfigError(
            f"config.mesh is data={config.data} fsdp={config.fsdp} "
            f"tensor={config.tensor}; expected sizes whose product is the number of "
            f"devices, {count} (one of them may be -1)"
        )
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


def batch_parts(mesh: Mesh) -> int:
    """How many devices the rows of a batch are split over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Rows of a batch over data and fsdp."""
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise ConfigError(
            f"batches of {batch_size} samples (batch_size / gradient_accumulation_steps) cannot be "
            f"split over mesh.data x mesh.fsdp = {parts} devices; make it a multiple"
        )
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def round_up(mesh: Mesh, batch_size: int) -> int:
    """The next batch size that can be split over data and fsdp."""
    parts = batch_parts(mesh)
    return -(-batch_size // parts) * parts


def vocabulary(mesh: Mesh, vocab_size: int) -> NamedSharding:
    """The embedding table [V, E] where it is used: gathered, but for a split of V."""
    whole = vocab_size % mesh.shape["tensor"]
    return NamedSharding(mesh, PartitionSpec(None if whole else "tensor"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of the parameter `name`, e.g. "llm/layers/mlp/linear".

    A dimension that its mesh axis does not divide (one kv head, say) is repeated.
    """
    return NamedSharding(mesh, PartitionSpec(*_axes(mesh, name, shape)))


def _axes(mesh: Mesh, name: str, shape: tuple[int, ...]) -> list[str | None]:
    """The mesh axis of each dimension of the parameter `name`."""
    axes = next((a for pattern, a in _RULES if re.fullmatch(pattern, name)), ())
    axes = ((None,) * len(shape) + axes)[-len(shape) :] if shape else ()
    return [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]


def placement(mesh: Mesh, dtype: jnp.dtype) -> Placement:
    """How a model that computes in `dtype` runs on a mesh: rows of a batch stay split,
    and kernels that fsdp splits are gathered when their layer comes, in `dtype`."""
    if mesh.size == 1:
        return ONE_DEVICE
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def used(name: str, leaf: jax.Array) -> jax.Array:
        axes = _axes(mesh, f"/{name}", leaf.shape)
        if not any(axes):
            return leaf
        spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes))
        where = NamedSharding(mesh, spec)
        return jax.lax.with_sharding_constraint(leaf.astype(dtype), where)

    def weights(params: dict) -> dict:
        flat = flatten_dict(params, sep="/")
        flat = {n: jax.tree.map(partial(used, n), leaf) for n, leaf in flat.items()}
        return unflatten_dict(flat, sep="/")

    return Placement(
        rows=lambda x: jax.lax.with_sharding_constraint(x, rows), weights=weights
    )


def sharded_params(mesh: Mesh, shapes: dict) -> dict:
    """Nested dicts of shapes and dtypes, with the sharding of each parameter."""
    leaves = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=param_sharding(mesh, name, leaf.shape)
        )
        for name, leaf in flatten_dict(shapes, sep="/").items()
    }
    return unflatten_dict(leaves, sep="/")
