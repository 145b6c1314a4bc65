"""The two-way table between parameters and the tensors of a file format.

One table a model serves reading and writing. A row maps a tensor to (a part of) a
parameter and says how its axes are laid out. Parameters have the layers stacked on a
leading axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.errors import CheckpointError
from hive_jax.models.decoder import Decoder, DecoderConfig
from hive_jax.models.hive import Hive, HiveConfig
from hive_jax.models.layer_stack import SCANNED
from hive_jax.models.siglip import SiglipConfig, SiglipEncoder, TwoTowers
from hive_jax.weights.safetensors import Tensor, cast, stored_dtype


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of the file format, for each layer if its name has a "{}".

    Attributes:
      param_name: of the parameter, e.g. "layers/attn/kv_einsum/w".
      tensor_name: of the tensor; "{}" stands for the number of the layer, from 0.
      layout: einops pattern "tensor axes -> parameter axes", e.g. "(N H) E -> N E H";
        empty if they are the same.
      slot: index into the parameter (after its layers) if it holds several tensors.
      third: which third of the tensor's rows, if it holds three parameters.
    """

    param_name: str
    tensor_name: str
    layout: str = ""
    slot: int | None = None
    third: int | None = None


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """A row of one layer: `param[at]`, of the given shape, is (a third of) a tensor."""

    param_name: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    tensor_name: str
    layout: str
    third: int | None


def tensor_slices(
    rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]
) -> list[TensorSlice]:
    """The rows, layer by layer.

    Args:
      rows: the table.
      shapes: of the parameters by name. Each must be in some row, and each row must
        name one of them.
    """
    rows = list(rows)
    named = {row.param_name for row in rows}
    assert named == set(shapes), named ^ set(shapes)
    slices = []
    for row in rows:
        stacked = "{}" in row.tensor_name
        for layer in range(shapes[row.param_name][0]) if stacked else [None]:
            at = tuple(index for index in (layer, row.slot) if index is not None)
            shape = shapes[row.param_name][len(at) :]
            name = row.tensor_name.format(layer) if stacked else row.tensor_name
            slices.append(
                TensorSlice(row.param_name, at, shape, name, row.layout, row.third)
            )
    return slices


def tensor_shapes(slices: Iterable[TensorSlice]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor; nothing is allocated."""
    shapes = {}
    for part in slices:
        nothing = np.broadcast_to(np.float32(0), part.shape)
        rows, *rest = _to_tensor(nothing, part).shape
        shapes[part.tensor_name] = (rows if part.third is None else 3 * rows, *rest)
    return shapes


def require_fit(
    source: str,
    slices: Iterable[TensorSlice],
    tensors: Mapping[str, Tensor],
    belongs_to_other_component: Callable[[str], bool],
) -> list[str]:
    """Compares the names, shapes and dtypes of `tensors` with what the table expects.

    Args:
      source: where the tensors are, for the message.
      slices: of the table.
      tensors: by name.
      belongs_to_other_component: whether a tensor of this name may be left out.

    Returns:
      The names that were left out.

    Raises:
      CheckpointError: all that is missing, unexpected, or of another shape or dtype.
    """
    expected = tensor_shapes(slices)
    dtype = stored_dtype(tensors[name] for name in expected if name in tensors)
    lines = []
    for name, shape in expected.items():
        if name not in tensors:
            lines.append(f"missing: {name} {list(shape)}")
        elif tensors[name].shape != shape:
            found = list(tensors[name].shape)
            lines.append(f"shape: {name} is {found}; expected {list(shape)}")
        elif tensors[name].dtype != dtype:
            found = tensors[name].dtype
            lines.append(f"dtype: {name} is {found}; expected {dtype} as in the others")
    others = [name for name in tensors if name not in expected]
    unexpected = [name for name in others if not belongs_to_other_component(name)]
    lines += [f"unexpected: {name} {list(tensors[name].shape)}" for name in unexpected]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{source}: {len(lines)} tensors do not fit its configuration, nothing was "
            f"loaded:\n  {listed}\nGet the files again, or those of one model."
        )
    return others


def read_params(
    slices: Iterable[TensorSlice],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters by name, float32, one after the other; one tensor is read at a time.

    Args:
      slices: of the table.
      tensors: by name.
      shapes: of the parameters.

    Raises:
      CheckpointError: after the last one, with all tensors that are damaged.
    """
    by_name: dict[str, list[TensorSlice]] = {}
    for part in slices:
        by_name.setdefault(part.param_name, []).append(part)
    damaged = {}
    for name, parts in by_name.items():
        array = np.empty(shapes[name], np.float32)
        for part in parts:
            try:
                tensor = tensors[part.tensor_name].read()
                array[part.at] = _to_param(tensor, part)
            except CheckpointError as error:
                damaged[part.tensor_name] = str(error)
        yield name, array
    if damaged:
        raise CheckpointError("\n".join(damaged.values()))


def make_tensors(
    slices: Iterable[TensorSlice], arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> function that makes the tensor.

    Args:
      slices: of the table.
      arrays: parameters by name.
      dtype: of the tensors.
    """
    by_name: dict[str, list[TensorSlice]] = {}
    for part in slices:
        by_name.setdefault(part.tensor_name, []).append(part)

    def make(parts: list[TensorSlice]) -> np.ndarray:
        parts = sorted(parts, key=lambda part: part.third or 0)
        found = [_to_tensor(arrays[part.param_name][part.at], part) for part in parts]
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return cast(parts[0].tensor_name, whole, dtype)

    return {name: lambda parts=parts: make(parts) for name, parts in by_name.items()}


def _to_param(tensor: np.ndarray, part: TensorSlice) -> np.ndarray:
    import einops

    if part.third is not None:
        tensor = np.split(tensor, 3)[part.third]
    if not part.layout:
        return tensor
    right = part.layout.partition(" -> ")[2]
    param = np.broadcast_to(np.float32(0), part.shape)
    return einops.rearrange(tensor, part.layout, **einops.parse_shape(param, right))


def _to_tensor(param: np.ndarray, part: TensorSlice) -> np.ndarray:
    """Without the other two thirds."""
    import einops

    if not part.layout:
        return param
    left, _, right = part.layout.partition(" -> ")
    return einops.rearrange(param, f"{right} -> {left}")


@functools.cache
def param_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters; nothing is computed.

    Args:
      config: SiglipConfig, DecoderConfig, (SiglipConfig, TextTowerConfig) or HiveConfig.
    """
    model, inputs = _model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}


def _model(config):
    """The module, and inputs of the right shapes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    if isinstance(config, DecoderConfig):
        return Decoder(config, execution=SCANNED.decoder), (tokens,)
    if isinstance(config, SiglipConfig):
        return SiglipEncoder(config, execution=SCANNED.encoder), (_image(config),)
    if isinstance(config, HiveConfig):
        inputs = (_image(config.encoder), tokens, tokens == 0)
        return Hive(config, execution=SCANNED), inputs
    image, text = config
    tokens = jnp.zeros((1, text.num_tokens), jnp.int32)
    return TwoTowers(image, text, execution=SCANNED), (_image(image), tokens)


def checked_shapes(config, source: str) -> dict[str, tuple[int, ...]]:
    """`param_shapes`, or CheckpointError if no model has this configuration."""
    towers = config if isinstance(config, tuple) else (config,)
    if isinstance(config, HiveConfig):
        towers = (config.encoder, config.decoder)
    for tower in towers:
        _require_possible(tower, source)
    try:
        return param_shapes(config)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: no model is {config}: {error}") from None


_MAY_BE_ZERO = (
    "norm_offset",
    "local_layers",
    "query_scale",
    "attention_softcap",
    "final_softcap",
)
_LIMITS = {"vocab_size": 10_000_000, "window": 10_000_000}


def _require_possible(tower, source: str) -> None:
    """Raises CheckpointError for a number that no model can have."""
    for field in dataclasses.fields(tower):
        if field.type not in (int, float):
            continue
        value = getattr(tower, field.name)
        limit = _LIMITS.get(field.name, 100_000 if field.type is int else math.inf)
        at_least = 0 if field.name in _MAY_BE_ZERO else 1e-9
        is_number = isinstance(value, int | field.type) and value is not True
        if not (is_number and at_least <= value < limit):
            raise CheckpointError(f"{source}: {field.name} is {value!r}")


def _image(config: SiglipConfig) -> jax.ShapeDtypeStruct:
    shape = (1, config.image_size, config.image_size, 3)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def resize_positions(position: np.ndarray, num_patches: int) -> np.ndarray:
    """float32[1, P, D] of a square grid -> [1, num_patches, D] of another one.

    Linear interpolation with the corners of both grids on each other, as big_vision's
    image tower does when it loads weights. The same number of patches changes nothing.

    Raises:
      ValueError: a number of patches is not a square.
    """
    _, old, width = position.shape
    for count in (old, num_patches):
        if count == 0 or math.isqrt(count) ** 2 != count:
            raise ValueError(f"{count} patches; expected those of a square grid")
    if old == num_patches:
        return position
    import scipy.ndimage

    side, wanted = math.isqrt(old), math.isqrt(num_patches)
    grid = position.reshape(side, side, width)
    grid = scipy.ndimage.zoom(grid, (wanted / side, wanted / side, 1), order=1)
    return grid.reshape(1, num_patches, width)
