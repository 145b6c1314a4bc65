"""Tensors in safetensors files, opened lazily, read one at a time, written in shards.

Nothing here needs torch, and nothing is ever unpickled.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hive_jax.errors import CheckpointError, ConfigError, MissingInputError
from hive_jax.io import read_json, write_json

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# transformers' own limit.
_MAX_SHARD_BYTES = 5_000_000_000


SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CERTIFICATE = "hive_export.json"

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
      shape: as stored.
      dtype: "float32", "float16", "bfloat16", or another format's name.
      read: returns the array; CheckpointError if it is damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def stored_dtype(tensors: Iterable[Tensor]) -> str:
    """The dtype that most of the tensors have, of those that weights can have."""
    known = _DTYPES.values()
    counts = collections.Counter(t.dtype for t in tensors if t.dtype in known)
    return counts.most_common(1)[0][0] if counts else "float32"


def require_finite(array: np.ndarray, name: str, path) -> np.ndarray:
    """Returns the array, or raises CheckpointError if a value is NaN or infinite."""
    if not _is_finite(array):
        raise CheckpointError(
            f"{path}: {name!r} holds values that are not finite: the file is damaged, "
            "or its training diverged. Get it again, or use another."
        )
    return array


def cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array as it is stored in `dtype`; CheckpointError if that cannot hold it."""
    with np.errstate(over="ignore"):
        short = np.ascontiguousarray(array, dtype)
    if not _is_finite(short):
        raise CheckpointError(
            f"{name}: not finite as {dtype}: its training diverged, or its values are "
            "too large for this dtype; bfloat16 and float32 hold larger ones"
        )
    return short


def _is_finite(array: np.ndarray) -> bool:
    flat, step = array.ravel(order="K"), 1_000_000  # a view, with little beside it
    starts = range(0, flat.size, step)
    return all(np.isfinite(flat[start : start + step]).all() for start in starts)


def open_safetensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder with model.safetensors, or with shards and their index.

    Where the folder carries a certificate of `tools/export_hf.py`, its other files
    are compared with the hashes in it now, and each tensor as it is read.

    Raises:
      MissingInputError: there are none, or shards are missing.
      CheckpointError: a file is damaged, or disagrees with the index.
    """
    hashes = _hashes(folder)
    if (folder / INDEX).is_file():
        return _open_shards(folder, hashes)
    if (folder / SINGLE).is_file():
        return _open(folder / SINGLE, hashes)
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise refused(folder / pickled[0])
    raise MissingInputError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def refused(path: Path) -> CheckpointError:
    """The error for a file that only pickle could read."""
    return CheckpointError(
        f"{path}: pickled files can run code and are not read; expected safetensors. "
        "Convert it where torch and transformers are installed:\n"
        '  python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{path.parent}').save_pretrained('converted')\""
    )


def tensor_hash(array: np.ndarray) -> str:
    """SHA-256 of the bytes, as certificates have it."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """The hashes of the tensors, if there is a certificate, and the other files have
    theirs; the model card may be changed."""
    path = folder / CERTIFICATE
    if not path.is_file():
        return {}
    about = read_json(path, error=CheckpointError)
    hashes, files = about.get("tensors"), about.get("files", {})
    if not isinstance(hashes, dict) or not isinstance(files, dict):
        raise CheckpointError(f"{path}: expected the hashes of 'tensors' and 'files'")
    changed = [
        name
        for name, wanted in files.items()
        if name != "README.md" and _file_hash(folder / Path(name).name) != wanted
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed or missing since the export. Get the "
            f"folder again, or remove {CERTIFICATE} if the change is yours."
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
    shards = sorted({str(shard) for shard in shard_of.values()})
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index}: {outside} are not names of files beside it")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise MissingInputError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: "
            f"{', '.join(missing)}. Get them again."
        )
    tensors, lines = {}, []
    for shard in shards:
        found = _open(folder / shard, hashes)
        listed = {name for name, where in shard_of.items() if where == shard}
        lines += [f"{name}: not in {shard}" for name in sorted(listed - set(found))]
        lines += [
            f"{name}: in {shard}, not in the index"
            for name in sorted(set(found) - listed)
        ]
        tensors |= found
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
        raise CheckpointError(
            f"{path} is damaged or incomplete, or not a safetensors file: {error}. "
            "Compare its size with the original's, and get it again."
        ) from None
    if hashes and not set(names) <= set(hashes):
        unknown = ", ".join(sorted(set(names) - set(hashes)))
        raise CheckpointError(f"{path}: {unknown} is not in {CERTIFICATE}")
    return {name: _tensor(file, path, name, hashes.get(name)) for name in names}


def _tensor(file, path: Path, name: str, wanted: str | None) -> Tensor:
    piece = file.get_slice(name)
    dtype = _DTYPES.get(piece.get_dtype(), piece.get_dtype())

    def read() -> np.ndarray:
        array = file.get_tensor(name)
        if wanted is not None and tensor_hash(array) != wanted:
            raise CheckpointError(
                f"{path}: {name!r} does not have the hash in {CERTIFICATE}: it was "
                "changed or damaged after the export. Get the folder again, or remove "
                f"{CERTIFICATE} if the change is yours."
            )
        return require_finite(array, name, path)

    return Tensor(tuple(piece.get_shape()), dtype, read)


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
