"""Integrity of checkpoints: fingerprints of every array, and classified read errors.

A fingerprint is two sums of 32-bit words modulo 2^32. Integer sums do not depend
on their order, so every mesh gives the same numbers. With `word` the bits of an
element and `hash` a hash of its index:

    first  = sum(word * (hash | 1))
    second = sum(mix(word ^ mix(hash)))

An odd factor and `mix` are both one-to-one, so a change of a single element changes
both sums. The first alone would miss two flipped sign bits (each adds 2^31).

The same pass says whether every value is finite.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.errors import CheckpointError
from hive_jax.training.checkpointing.trees import flatten

# Status words of transient I/O errors, after which the files may still be intact.
_TRANSIENT = (
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
)


class DamagedError(Exception):
    """A checkpoint step is corrupt: unreadable files, or values that changed on disk."""


@contextlib.contextmanager
def classify_read_errors(items: str, names: Iterable[str] = ()):
    """Context manager that raises read errors as corruption or transient failure.

    Orbax and TensorStore raise whatever a broken byte leads to (KeyError,
    JSONDecodeError, ValueError, ...), so every error counts as corruption unless it
    is known to be transient. All processes of a job raise alike.

    Args:
      items: of the step, being read.
      names: leaves being read; the message names those that the error mentions, else
        the items.

    Raises:
      DamagedError: some process found corrupt files.
      CheckpointError: a transient I/O failure; the files may be intact.
    """
    problem = None
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # of this machine, and no evidence against the files
    except Exception as error:
        # A missing file of a complete step is damage; other system errors may pass.
        unreadable = isinstance(error, OSError) and not isinstance(
            error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)
        )
        if unreadable or any(word in str(error) for word in _TRANSIENT):
            raise CheckpointError(
                f"a checkpoint cannot be read now: {first_line(error)}. "
                "This does not look like damage; try again."
            ) from error
        leaves = ", ".join(name for name in names if _mentions(error, name))
        where = leaves or f"{items}: {type(error).__name__}"
        problem = f"{where}: {first_line(error)}"
    # Together: a process that used an older step than the others would hang the job.
    if jax.process_count() > 1:
        # All processes take part, also those that could read: it is a collective.
        failed = multihost_utils.process_allgather(np.array(problem is not None))
        if failed.any() and problem is None:
            problem = f"unreadable on processes {np.flatnonzero(failed).tolist()}"
    if problem is not None:
        raise DamagedError(problem)


def _mentions(error: Exception, name: str) -> bool:
    """Returns whether TensorStore's message names this leaf: `"img.kernel/0.0"`."""
    # Items are stored apart, with dots between the levels of a name.
    stored = name.removeprefix("params/").replace("/", ".") + "/"
    return f'"{stored}' in str(error) or f"'{stored}" in str(error)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error message, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def digest(meta: dict) -> str:
    """Returns the SHA-256 of a JSON value, in hexadecimal."""
    # Through JSON once, so that a tuple and the list it is read back as are equal.
    text = json.dumps(json.loads(json.dumps(meta)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# 2^32 divided by the golden ratio; its multiples separate the axes.
_GOLDEN = 0x9E3779B9


def fingerprint(tree: Any) -> dict[str, str]:
    """Returns the fingerprint (16 hexadecimal digits) of every leaf, by slash-joined
    name.

    Leaves are arrays or scalars of float, int or bool dtypes with 8 to 64 bits.
    """
    fingerprints, _ = inspect_leaves(tree)
    return fingerprints


def inspect_leaves(tree: Any) -> tuple[dict[str, str], list[str]]:
    """Returns the fingerprint of every leaf as `fingerprint` does, and the names of the
    leaves that have NaN or infinity."""
    arrays = fingerprint_arrays(tree)
    # A process can read its own shards alone; others come by a collective.
    arrays = {
        name: array
        if array.is_fully_addressable
        else multihost_utils.process_allgather(array, tiled=True)
        for name, array in arrays.items()
    }
    fingerprints, not_finite = {}, []
    for name, (first, second, finite) in jax.device_get(arrays).items():
        fingerprints[name] = f"{int(first):08x}{int(second):08x}"
        if not finite:
            not_finite.append(name)
    return fingerprints, not_finite


def fingerprint_arrays(tree: Any) -> dict[str, jax.Array]:
    """Returns uint32[3] on device for every leaf: the two sums, and 1 if all values are
    finite, else 0. Waits for the computation on CPUs only."""
    arrays = {}
    for name, leaf in flatten(tree).items():
        arrays[name] = _inspect_leaf(jnp.asarray(leaf))
        # XLA's CPU devices share a pool of threads, in which the collectives of many
        # programs at once would wait for each other until XLA aborts.
        if jax.default_backend() == "cpu":
            jax.block_until_ready(arrays[name])
    return arrays


# A program for each shape: one for all leaves would take XLA many times as long.
@jax.jit
def _inspect_leaf(array: jax.Array) -> jax.Array:
    words = _words(array)
    # With the index in them, the sums also change when values trade places.
    index_hash = _index_hash(words.shape)
    terms = (
        words * (index_hash | 1),
        _mix(words ^ _mix(index_hash)),
        _is_finite(array, words.shape),
    )
    # One reduction for all: on CPU, XLA would keep arrays of hashes for several.
    return jnp.stack(
        jax.lax.reduce(
            terms,
            (jnp.uint32(0), jnp.uint32(0), jnp.uint32(1)),
            lambda x, y: (x[0] + y[0], x[1] + y[1], x[2] & y[2]),
            tuple(range(words.ndim)),
        )
    )


def _is_finite(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns 1 for finite elements and 0 for others, uint32 of the shape of `_words`."""
    finite = jnp.isfinite(array).astype(jnp.uint32)  # of integers 1
    # 64-bit elements have two words.
    return jnp.broadcast_to(
        finite.reshape(*array.shape, *[1] * (len(shape) - array.ndim)), shape
    )


def _words(array: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32; 64-bit elements become two words."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    # The bits and not the values: NaN payloads and the sign of 0 count as well.
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _index_hash(shape: tuple[int, ...]) -> jax.Array:
    """Returns hashes of the indices, uint32[shape].

    Each axis counts on its own and wraps around, so there is no flat index to
    overflow in arrays of more than 2^32 elements, and sharded axes stay as they are.
    """
    index_hash = jnp.full(shape, 1, jnp.uint32)
    for axis in range(len(shape)):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index_hash = _mix(index_hash + position * jnp.uint32(_GOLDEN))
    return index_hash


def _mix(word: jax.Array) -> jax.Array:
    """Scrambles uint32 one-to-one: the finalizer of MurmurHash3."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
