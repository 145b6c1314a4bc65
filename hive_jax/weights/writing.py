"""Tensors written as safetensors."""

from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hive_jax.errors import ConfigError
from hive_jax.io import write_json
from hive_jax.weights.tensors import INDEX, SINGLE, tensor_hash

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# transformers' own limit.
_MAX_SHARD_BYTES = 5_000_000_000


def dtype_named(name: str) -> np.dtype:
    """The dtype to store weights in. Raises ConfigError for another name."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def write_tensors(
    folder: Path,
    make: Mapping[str, Callable[[], np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> dict[str, str]:
    """Writes tensors as safetensors, in shards with an index if they are many.

    Only one shard is in memory at a time.

    Args:
      make: makes each tensor, by name.
      shapes: of the same tensors.

    Returns:
      The hash of each tensor.
    """
    shards = _shards(shapes, dtype.itemsize, max_shard_bytes)
    hashes, weight_map = {}, {}
    for number, names in enumerate(shards, start=1):
        alone = len(shards) == 1
        file = SINGLE if alone else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: make[name]() for name in names}
        save_safetensors(folder / file, tensors)
        hashes |= {name: tensor_hash(tensor) for name, tensor in tensors.items()}
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        size = sum(_num_bytes(shape, dtype.itemsize) for shape in shapes.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
    return hashes


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One file, marked as PyTorch's. OSError if it cannot be written."""
    import safetensors
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library leaves it to its owner alone
    except safetensors.SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def _shards(shapes: Mapping[str, tuple], itemsize: int, limit: int) -> list[list[str]]:
    shards, room = [[]], limit
    for name, shape in shapes.items():
        size = _num_bytes(shape, itemsize)
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _num_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    return int(np.prod(shape, dtype=np.int64)) * itemsize
