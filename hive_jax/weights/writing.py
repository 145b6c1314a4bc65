"""Folders that appear complete or not at all, and the tensors in them."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hive_jax.errors import ConfigError, OutputError
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


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error.

    Raises:
      OutputError: there is something at `path`, or it cannot be written.
    """
    path = Path(path)
    require_absent(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error}; nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """The same for one file."""
    path = Path(path)
    require_absent(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Where to write what will be `path`. What killed processes left there is removed."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        process = left.name.split(".")[-2]
        if process.isdigit() and not _is_running(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def require_absent(path: str | os.PathLike) -> None:
    """Raises OutputError if there is something at `path`."""
    if os.path.lexists(path):
        raise OutputError(f"{path} exists and is not overwritten: choose another name")


def write_json(path: Path, value: Mapping) -> None:
    """Writes a JSON object as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
