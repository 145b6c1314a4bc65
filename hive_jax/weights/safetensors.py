"""safetensors files: opened lazily, read one tensor at a time, written in shards.

Needs no torch, and never unpickles.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hive_jax.errors import CheckpointError, ConfigError, MissingInputError
from hive_jax.file_content import explain_file
from hive_jax.io import read_json, write_json

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# The default of transformers' save_pretrained.
_MAX_SHARD_BYTES = 5_000_000_000

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Written by hive_jax.export_hf: hashes of the files and tensors of an export.
EXPORT_REPORT = "hive_export.json"

# By the names of the format; others keep their own, and no table expects them.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Each converts to float32, as parameters are, without rounding.
FLOAT_DTYPES = frozenset(_DTYPES.values())


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
      shape: as stored.
      dtype: "float32", "float16", "bfloat16", or the format's name of another one.
      read: reads the array; raises CheckpointError if it is damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def require_finite(array: np.ndarray, name: str, path) -> np.ndarray:
    """Returns the array, if all its values are finite.

    Args:
      array: values of a tensor.
      name: name of the tensor, for the message.
      path: its file, for the message.

    Raises:
      CheckpointError: a value is NaN or infinite.
    """
    if not _is_finite(array):
        raise CheckpointError(
            f"{path}: {name!r} holds values that are not finite: the file is damaged, "
            "or its training diverged. Get it again, or use another."
        )
    return array


def cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts an array to the dtype that it is stored in.

    Args:
      name: name of the tensor, for the message.
      array: its values.
      dtype: float32, bfloat16 or float16.

    Raises:
      CheckpointError: a value is not finite in `dtype`.
    """
    # An overflow gives infinity here, which the check below reports with the name.
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype)
    if not _is_finite(result):
        raise CheckpointError(
            f"{name}: not finite as {dtype}: its training diverged, or its values are "
            "too large for this dtype; bfloat16 and float32 hold larger ones"
        )
    return result


def _is_finite(array: np.ndarray) -> bool:
    # In chunks of a view: np.isfinite of a whole tensor would need memory of its own.
    flat, step = array.ravel(order="K"), 1_000_000
    starts = range(0, flat.size, step)
    return all(np.isfinite(flat[start : start + step]).all() for start in starts)


def open_safetensors(folder: Path) -> dict[str, Tensor]:
    """Opens model.safetensors of a folder, or shards and their index; it has either.

    If the folder has hashes of hive_jax.export_hf, other files are compared with them
    now, and each tensor when it is read.

    Returns:
      The tensors by name.

    Raises:
      MissingInputError: a shard is missing.
      CheckpointError: a file is damaged, changed, or disagrees with the index.
    """
    hashes = _hashes(folder)
    if (folder / INDEX).is_file():
        return _open_shards(folder, hashes)
    return _open(folder / SINGLE, hashes)


def tensor_hash(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's bytes, as hex digits."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """Returns the recorded hashes of the tensors, after checking those of other files.

    The model card may be edited.
    """
    path = folder / EXPORT_REPORT
    if not path.is_file():
        return {}
    about = read_json(path, error=CheckpointError)
    hashes, files = about.get("tensors"), about.get("files", {})
    if not isinstance(hashes, dict) or not isinstance(files, dict):
        raise CheckpointError(f"{path}: expected the hashes of 'tensors' and 'files'")
    changed = [
        name
        for name, expected in files.items()
        # Path(name).name: the report is untrusted, too, and must not lead out of the
        # folder.
        if name != "README.md" and _file_hash(folder / Path(name).name) != expected
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed or missing since the export. Get the "
            f"folder again, or remove {EXPORT_REPORT} if the change is yours."
        )
    return hashes


def _file_hash(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content).hexdigest()


def _open_shards(folder: Path, hashes: dict) -> dict[str, Tensor]:
    index = folder / INDEX
    shard_of = read_json(index, error=CheckpointError).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index} has no weight_map")
    # Strings, because an untrusted index may have any JSON values.
    shards = sorted({str(shard) for shard in shard_of.values()})
    # An index is untrusted: a shard must not lead out of its folder.
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index}: {outside} are not file names in its folder")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise MissingInputError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: "
            f"{', '.join(missing)}. Get them again."
        )
    tensors, lines = {}, []
    for shard in shards:
        # Both directions: a tensor that only one of the two has is a mixed download.
        stored = _open(folder / shard, hashes)
        indexed = {name for name, file in shard_of.items() if file == shard}
        lines += [f"{name}: not in {shard}" for name in sorted(indexed - set(stored))]
        lines += [
            f"{name}: in {shard}, not in the index"
            for name in sorted(set(stored) - indexed)
        ]
        tensors |= stored
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(f"{index} disagrees with its shards:\n  {listed}")
    return tensors


def _open(path: Path, hashes: dict) -> dict[str, Tensor]:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
        names = list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        if explanation := explain_file(path):
            raise CheckpointError(f"{path} {explanation}") from None
        raise CheckpointError(
            f"{path} is damaged or incomplete, or not a safetensors file: {error}. "
            "Compare its size with the original's, and get it again."
        ) from None
    # A tensor without a hash was not exported.
    if hashes and not set(names) <= set(hashes):
        unknown = ", ".join(sorted(set(names) - set(hashes)))
        raise CheckpointError(f"{path}: {unknown} is not in {EXPORT_REPORT}")
    return {name: _tensor(file, path, name, hashes.get(name)) for name in names}


def _tensor(file, path: Path, name: str, expected_hash: str | None) -> Tensor:
    header = file.get_slice(name)  # shape and dtype; reads no values
    dtype = _DTYPES.get(header.get_dtype(), header.get_dtype())

    def read() -> np.ndarray:
        array = file.get_tensor(name)
        if expected_hash is not None and tensor_hash(array) != expected_hash:
            raise CheckpointError(
                f"{path}: {name!r} does not have the hash in {EXPORT_REPORT}: it was "
                "changed or damaged after the export. Get the folder again, or remove "
                f"{EXPORT_REPORT} if the change is yours."
            )
        return require_finite(array, name, path)

    return Tensor(tuple(header.get_shape()), dtype, read)


def dtype_named(name: str) -> np.dtype:
    """Returns the dtype of a key of DTYPES.

    Raises:
      ConfigError: unknown name.
    """
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
    """Writes tensors as one file, or as shards with an index; one shard at a time.

    Args:
      folder: an existing folder.
      make: name -> function that makes the tensor.
      shapes: shape of each tensor by name.
      dtype: of the tensors.
      max_shard_bytes: size at which a new shard begins.

    Returns:
      The hash of each tensor.

    Raises:
      OSError: a file cannot be written.
    """
    shards = _shards(shapes, dtype.itemsize, max_shard_bytes)
    hashes, weight_map = {}, {}
    for number, names in enumerate(shards, start=1):
        is_single = len(shards) == 1
        file = (
            SINGLE
            if is_single
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        # The tensors of one shard are in memory at a time.
        tensors = {name: make[name]() for name in names}
        save_safetensors(folder / file, tensors)
        # Of the tensors and not of the file, so that a loader can check them one by one.
        hashes |= {name: tensor_hash(tensor) for name, tensor in tensors.items()}
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        # The layout of transformers' index file.
        size = sum(_num_bytes(shape, dtype.itemsize) for shape in shapes.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
    return hashes


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file.

    Args:
      path: the file.
      tensors: arrays by name.

    Raises:
      OSError: it cannot be written.
    """
    import safetensors
    from safetensors.numpy import save_file

    try:
        # The metadata with which transformers marks weights of PyTorch models.
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library makes it readable by its owner alone
    except safetensors.SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def _shards(shapes: Mapping[str, tuple], itemsize: int, limit: int) -> list[list[str]]:
    shards, free = [[]], limit
    for name, shape in shapes.items():
        size = _num_bytes(shape, itemsize)
        # A tensor larger than the limit has a shard of its own; no shard is empty.
        if size > free and shards[-1]:
            shards.append([])
            free = limit
        shards[-1].append(name)
        free -= size
    return shards


def _num_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    return int(np.prod(shape, dtype=np.int64)) * itemsize
