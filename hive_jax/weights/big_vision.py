"""Parameters in big_vision's .npz files: arrays under flat names with slashes.

Layers may be stored one by one (`encoderblock_0`, `encoderblock_1`, ...) or stacked
(`encoderblock`, layers on axis 0). They are read as stacked, as our models have them.
"""

import contextlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from hive_jax.errors import CheckpointError, MissingInputError, OutputError

_LAYER = re.compile(r"(.*\bencoderblock)_(\d+)/(.+)")


def load_npz(path: str | os.PathLike) -> dict:
    """The parameters in a file as nested dicts of arrays, layers stacked.

    Names may start with `params/`; what else is beside such names (the optimizer of
    a whole training state) is left out. Pickled objects are never read.

    Raises:
      MissingInputError: there is no such file.
      CheckpointError: it is no .npz file of plain arrays, or lacks layers.
    """
    flat = _read(path)
    if any(name.startswith("params/") for name in flat):
        flat = {
            name.removeprefix("params/"): array
            for name, array in flat.items()
            if name.startswith("params/")
        }
    return _nest(_stack_layers(flat, path), path)


def save_npz(path: str | os.PathLike, params: Mapping, prefix: str = "params") -> None:
    """Writes nested dicts of arrays under flat names; the file appears complete.

    Raises:
      OutputError: the file cannot be written.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _flatten(params, prefix)}
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _read(path) -> dict[str, np.ndarray]:
    if not os.path.exists(path):
        raise MissingInputError(f"there is no file {path}; expected a big_vision .npz")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is not an .npz file, or its end is missing; expected what "
            "numpy.savez writes. If it was downloaded, compare its size and try again."
        )
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            try:
                array = file[name]
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise CheckpointError(
                    f"{path}: cannot read {name!r}: {error}. Expected plain arrays; "
                    "pickled objects can run code and are not read."
                ) from error
            if not isinstance(array, np.ndarray):
                raise CheckpointError(
                    f"{path}: {name!r} is no array; expected what numpy.savez writes"
                )
            # NumPy stores bfloat16, which it does not know, as 2 bytes of anything.
            is_bfloat16 = array.dtype == np.dtype("V2")
            arrays[name] = array.view(ml_dtypes.bfloat16) if is_bfloat16 else array
    return arrays


def _stack_layers(flat: dict[str, np.ndarray], path) -> dict[str, np.ndarray]:
    """`a/encoderblock_0/b`, `a/encoderblock_1/b`, ... -> `a/encoderblock/b`."""
    stacked, towers = {}, {}
    for name, array in flat.items():
        if match := _LAYER.fullmatch(name):
            tower, number, leaf = match.groups()
            layers = towers.setdefault(tower, {}).setdefault(leaf, {})
            layers[int(number)] = array
        else:
            stacked[name] = array
    for tower, leaves in towers.items():
        depth = 1 + max(number for layers in leaves.values() for number in layers)
        for leaf, layers in leaves.items():
            for number in range(depth):
                if number not in layers:
                    raise CheckpointError(
                        f"{path} has layers of {tower} up to number {depth - 1}, but "
                        f"no {tower}_{number}/{leaf}; expected all from 0 on"
                    )
            shapes = {array.shape for array in layers.values()}
            if len(shapes) > 1:
                raise CheckpointError(
                    f"{path}: {tower}_*/{leaf} has the shapes {sorted(shapes)}; "
                    "expected one shape in all layers"
                )
            stacked[f"{tower}/{leaf}"] = np.stack([layers[n] for n in range(depth)])
    return stacked


def _nest(flat: dict[str, np.ndarray], path) -> dict:
    tree: dict = {}
    for name, array in flat.items():
        *branches, leaf = name.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise CheckpointError(f"{path}: part of {name!r} is also an array")
        if leaf in node:
            raise CheckpointError(f"{path}: {name!r} is also the start of other names")
        node[leaf] = array
    return tree


def _flatten(tree: Mapping, prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value
