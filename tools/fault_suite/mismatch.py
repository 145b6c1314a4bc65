"""Weights and checkpoints of another model: every tensor changed, nothing is loaded."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from hive_jax.errors import CheckpointError
from hive_jax.models.config import DecoderConfig, SiglipConfig
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.weights import api, hf_models
from hive_jax.weights.big_vision import save_npz
from hive_jax.weights.mapping import param_shapes
from tools.fault_suite import stored_bits
from tools.fault_suite.figure import Figure, format_counts

# Half precision is as good: dtypes may differ from tensor to tensor.
OTHER_DTYPES = ("float64", "int32")
_ENCODER = SiglipConfig(24, 2, 40, 2, patch_size=4, image_size=8)
_DECODER = DecoderConfig(61, 24, 3, 40, 4, 2, 8, post_norms=True, qk_norm=True)


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Changes tensors of weight files, and leaves that a checkpoint is restored to.

    Args:
      count: changes at most, drawn from all.
      folder: for the files.
      cache: not used; nothing is trained.
    """
    formats = {
        "encoder folder": _folder(folder / "encoder", "encoder", _ENCODER),
        "decoder folder": _folder(folder / "decoder", "decoder", _DECODER),
        "encoder .npz": _npz(folder / "encoder.npz", _ENCODER),
        "checkpoint": _checkpoint(folder / "run"),
    }
    cases = [
        (origin, *mutation)
        for origin, (tensors, _) in formats.items()
        for mutation in mutations(
            tensors, tensors, _shape_damages if origin == "checkpoint" else _all_damages
        )
    ]
    random.Random(0).shuffle(cases)
    outcomes, failures = Counter(), []
    for origin, name, kind, damaged in cases[:count]:
        tensors, load = formats[origin]
        try:
            load(damaged)
        except CheckpointError as error:
            named = name in str(error)
            outcomes["refused" if named else "refused without a name"] += 1
            if not named:
                failures.append(f"{origin}, {name}, {kind}: {error}")
        except Exception as error:  # noqa: BLE001 - what is counted
            outcomes["exceptions"] += 1
            failures.append(
                f"{origin}, {name}, {kind}: {type(error).__name__}: {error}"
            )
        else:
            # Of the same shape: only values would tell.
            if kind == "transposed" and len({*tensors[name].shape}) == 1:
                outcomes["square ones transposed and loaded"] += 1
                continue
            outcomes["loaded"] += 1
            failures.append(f"{origin}, {name}, {kind}: loaded")
    tensors = sum(len(tensors) for tensors, _ in formats.values())
    seen = f"{tensors} tensors of {len(formats)} origins; {format_counts(outcomes)}"
    return Figure(outcomes.total(), seen, failures)


def damages(tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields the ways to damage a tensor: a name, and what is left; None for nothing."""
    yield "dropped", None
    yield "renamed", tensor
    yield "resized", np.concatenate([tensor, tensor[:1]])
    if tensor.ndim > 1:
        yield "transposed", np.ascontiguousarray(tensor.T)
    for dtype in OTHER_DTYPES:
        yield dtype, tensor.astype(dtype)


def _all_damages(tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields damages, also the one that shows only when values are read."""
    yield from damages(tensor)
    not_finite = tensor.copy()
    not_finite.flat[tensor.size // 2] = np.nan
    yield "NaN", not_finite


def _shape_damages(leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields damages of a leaf of a state, which may be a scalar."""
    if leaf.ndim:
        yield from damages(leaf)
    else:
        yield from (("dropped", None), ("renamed", leaf), ("resized", leaf[None]))


def mutations(
    tensors: Mapping[str, np.ndarray],
    names: Sequence[str],
    damages: Callable = damages,
) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Yields (name, kind of damage, all tensors) with one tensor damaged.

    Args:
      tensors: by name.
      names: of those to damage.
      damages: as the function of this name.
    """
    for name in names:
        others = {key: value for key, value in tensors.items() if key != name}
        for damage, rest in damages(tensors[name]):
            new = {} if rest is None else {name + "_" * (damage == "renamed"): rest}
            yield name, damage, others | new


def _arrays(config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in param_shapes(config).items()
    }


def _folder(path: Path, component: str, config) -> tuple[dict, Callable]:
    """Returns the tensors of a folder, and a function that writes and loads others."""
    path.mkdir(parents=True)
    layout = getattr(hf_models, component)(config)
    hf_models.write(path, layout, _arrays(config), np.dtype(np.float32))
    file = path / "model.safetensors"
    load = getattr(api, f"load_{component}")

    def write_and_load(tensors: dict) -> None:
        safetensors.numpy.save_file(tensors, file)
        load(str(path))

    return safetensors.numpy.load_file(file), write_and_load


def _npz(path: Path, config: SiglipConfig) -> tuple[dict, Callable]:
    """Returns the arrays of an .npz of big_vision, and a function as `_folder`'s."""
    arrays = {f"img/{name}": array for name, array in _arrays(config).items()}

    def write_and_load(tensors: dict) -> None:
        path.unlink(missing_ok=True)
        save_npz(path, tensors, {"img": vars(config)})
        api.load_encoder(str(path))

    return arrays, write_and_load


def _checkpoint(workdir: Path) -> tuple[dict, Callable]:
    """Returns the leaves of a saved state, and a function that restores to others."""
    stored_bits.save_random(workdir, 1)
    leaves = trees.flatten(stored_bits.abstract_leaves(workdir))
    arrays = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}

    def restore(tensors: dict) -> None:
        request = {
            name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
            for name, tensor in tensors.items()
        }
        with Checkpoints(str(workdir), read_only=True) as checkpoints:
            checkpoints.restore(request)

    return arrays, restore
