"""States, and checkpoints of them, for the tests of checkpointing."""

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from hive_jax.training.checkpointing.integrity import fingerprint
from hive_jax.training.checkpointing.manager import Checkpoints


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


def make_state(step=0, seed=0, dtype=jnp.bfloat16):
    """A state with a frozen leaf, bfloat16 leaves and masked optimizer nodes."""
    generator = np.random.default_rng(seed)
    params = {
        "img": {"kernel": jnp.asarray(generator.normal(size=(64, 32)), jnp.float32)},
        "head": {"scale": jnp.asarray(generator.normal(size=(8,)), dtype)},
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {"train": optax.adamw(1e-3), "freeze": optax.set_to_zero()},
            {"img": {"kernel": "train"}, "head": {"scale": "freeze"}},
        ),
    )
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return State(jnp.asarray(step, jnp.int32), params, opt_state)


def abstract(state, spec=(), devices=1):
    """The request for `state`, matrices sharded by `spec` over some devices."""
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])

    def request(leaf):
        sharding = NamedSharding(mesh, PartitionSpec(*spec if leaf.ndim == 2 else ()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(request, state)


def save_steps(workdir, steps, keep=3):
    """Saves a different state at each step and returns the last one."""
    with Checkpoints(str(workdir), keep=keep) as checkpoints:
        for step in steps:
            state = make_state(step, seed=step)
            checkpoints.save(step, state, {"seed": step})
        checkpoints.wait()
    return state


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    assert fingerprint(restored) == fingerprint(expected)
    for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def data_files(workdir, step, item="params"):
    """Files with array data of one item, the largest first."""
    files = Path(workdir, "checkpoints", str(step), item).glob("**/d/*")
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(bytes(content))
