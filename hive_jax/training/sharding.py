"""Sharding: the mesh (data, fsdp, tensor) and a partition rule for each parameter.

data     shards batches, replicates parameters
fsdp     shards batches and parameters (all-gathered where a layer uses them)
tensor   shards heads, MLP columns and the vocabulary
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

# Pattern -> mesh axis of each trailing dimension; leading axes (layers, connections)
# are never sharded. The first match wins; parameters without a match (norms, biases,
# gates, position embeddings) are replicated: they are small, and gathering them would
# cost more than it saves. Of each pair of products tensor splits the output dimension
# of the first and the input dimension of the second, so that one all-reduce follows
# the pair and none stands between the two (Megatron-LM, arXiv 1909.08053, section 3).
_RULES = (
    # SigLIP's attention: [D, N, H], and [N, H, D] of the output.
    (r".*/(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r".*/out/kernel", ("tensor", None, "fsdp")),
    # MLPs and projectors: [D, F] and [F, D], or [D, E] and [E, E].
    (r".*/(Dense_0|linear_1)/kernel", ("fsdp", "tensor")),
    (r".*/(Dense_1|linear_2)/kernel", ("tensor", "fsdp")),
    # Attention of the decoder and of connections: [N, E, H], [2, K, E, H], [N, H, E].
    (r".*/q_einsum/w", ("tensor", "fsdp", None)),
    (r".*/kv_einsum/w", (None, "tensor", "fsdp", None)),
    (r".*/attn_vec_einsum/w", ("tensor", None, "fsdp")),
    # The decoder's MLP: [2, E, F] and [F, E].
    (r".*/gating_einsum", (None, "fsdp", "tensor")),
    (r".*/mlp/linear", ("tensor", "fsdp")),
    # Token embeddings and output head [V, E], and patch embedding [p, p, 3, D].
    (r".*/((input|output)_embedding|Embed_0/embedding)", ("tensor", "fsdp")),
    (r".*/embedding/kernel", (None, None, None, "fsdp")),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the device mesh with axes data, fsdp and tensor.

    Args:
      config: sizes of the axes; one of them may be -1 for the remaining devices.
      devices: devices to use; by default all devices of all processes.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    shape = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    count = jax.device_count() if devices is None else len(devices)
    # Several axes of -1 stay negative and are refused below.
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
    # Auto: XLA propagates shardings from the constraints of params and activations.
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of a batch: the size of data times fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Returns the sharding of a batch, over data and fsdp.

    Args:
      mesh: the device mesh.
      batch_size: global number of samples of a micro-batch.

    Raises:
      ConfigError: the batch size is not a multiple of the number of shards.
    """
    shards = num_batch_shards(mesh)
    if batch_size % shards:
        raise ConfigError(
            f"micro-batches of {batch_size} samples (batch_size / "
            f"gradient_accumulation_steps) cannot be sharded over mesh.data x "
            f"mesh.fsdp = {shards} devices; expected a multiple of {shards}"
        )
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def round_up(mesh: Mesh, batch_size: int) -> int:
    """Rounds a batch size up to a multiple of the number of batch shards.

    Args:
      mesh: the device mesh.
      batch_size: global number of samples.
    """
    shards = num_batch_shards(mesh)
    return -(-batch_size // shards) * shards


def vocabulary_sharding(mesh: Mesh, vocab_size: int) -> NamedSharding:
    """Returns the sharding of the embedding table [V, E] during computation.

    V is sharded over tensor (replicated if that does not divide it); E is gathered.

    Args:
      mesh: the device mesh.
      vocab_size: V.
    """
    indivisible = vocab_size % mesh.shape["tensor"]
    return NamedSharding(mesh, PartitionSpec(None if indivisible else "tensor"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of one parameter.

    A dimension that its mesh axis does not divide (one kv head, say) is replicated.

    Args:
      mesh: the device mesh.
      name: slash-joined name, e.g. "llm/layers/mlp/linear".
      shape: shape of the parameter.
    """
    return NamedSharding(mesh, PartitionSpec(*_axes(mesh, name, shape)))


def _axes(mesh: Mesh, name: str, shape: tuple[int, ...]) -> list[str | None]:
    """Returns the mesh axis of each dimension of the parameter `name`."""
    axes = next((a for pattern, a in _RULES if re.fullmatch(pattern, name)), ())
    # Aligned at the last dimension: stacked parameters have leading axes more.
    axes = ((None,) * len(shape) + axes)[-len(shape) :] if shape else ()
    return [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]


def placement(mesh: Mesh, dtype: jnp.dtype) -> Placement:
    """Returns the sharding constraints of a model: activations stay sharded over the
    batch, and kernels that fsdp shards are all-gathered layer by layer.

    Args:
      mesh: the device mesh.
      dtype: compute dtype; kernels are cast before they are gathered, which halves
        the traffic of bfloat16.
    """
    if mesh.size == 1:
        return ONE_DEVICE
    activations = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    # Without these constraints XLA may shard the computation as the weights are, with
    # the whole batch on every device.
    def gather_leaf(name: str, leaf: jax.Array) -> jax.Array:
        # Names are relative to the layer; patterns expect a slash before them.
        axes = _axes(mesh, f"/{name}", leaf.shape)
        if not any(axes):
            return leaf
        spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes))
        return jax.lax.with_sharding_constraint(
            leaf.astype(dtype), NamedSharding(mesh, spec)
        )

    def gather_params(params: dict) -> dict:
        flat = flatten_dict(params, sep="/")
        # A leaf of this dict may be a tree: UnstackedLayers of a decoder for
        # generation.
        flat = {
            name: jax.tree.map(partial(gather_leaf, name), leaf)
            for name, leaf in flat.items()
        }
        return unflatten_dict(flat, sep="/")

    return Placement(
        shard_activations=lambda x: jax.lax.with_sharding_constraint(x, activations),
        gather_params=gather_params,
    )


def sharded_params(mesh: Mesh, shapes: dict) -> dict:
    """Adds its sharding to each abstract parameter.

    Args:
      mesh: the device mesh.
      shapes: nested dict of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Nested dict of `jax.ShapeDtypeStruct`.
    """
    leaves = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=param_sharding(mesh, name, leaf.shape)
        )
        for name, leaf in flatten_dict(shapes, sep="/").items()
    }
    return unflatten_dict(leaves, sep="/")


def with_shardings(tree, shardings):
    """Adds shardings to abstract leaves.

    Args:
      tree: of `jax.ShapeDtypeStruct`.
      shardings: one for all leaves, or a tree with one for each.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf_sharding
        ),
        tree,
        shardings,
    )
