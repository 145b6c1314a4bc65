"""The two-way table between parameters and the tensors of a file format.

Each model has one table, for reading and writing. A row maps a tensor to a parameter, or
to a slice of one, and gives the layout of its axes. Parameters have the layers stacked on
a leading axis; the formats have a tensor for each layer.
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
from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
from hive_jax.models.decoder import Decoder
from hive_jax.models.execution import SCANNED
from hive_jax.models.hive import Hive
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.weights.safetensors import FLOAT_DTYPES, Tensor, cast


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: one tensor, or one for each layer if its name has a "{}".

    Attributes:
      param_name: name of the parameter, e.g. "layers/attn/kv_einsum/w".
      tensor_name: name of the tensor; "{}" stands for the layer's number, from 0.
      layout: einops pattern "tensor axes -> parameter axes", e.g. "(N H) E -> N E H";
        empty if they are the same.
      slot: index into the parameter, after the layer's, if it holds several tensors.
      third: third of the tensor's first axis, if it holds three parameters (torch's
        `in_proj_weight`).
    """

    param_name: str
    tensor_name: str
    layout: str = ""
    slot: int | None = None
    third: int | None = None


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """A row of one layer: `param[at]` corresponds to a tensor, or to a third of it.

    Attributes:
      param_name: name of the parameter.
      at: index of the slice in the parameter: (layer, slot), as far as it has them.
      shape: of the slice.
      tensor_name: name of the tensor.
      layout: see `Row`.
      third: see `Row`.
    """

    param_name: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    tensor_name: str
    layout: str
    third: int | None


def tensor_slices(
    rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]
) -> list[TensorSlice]:
    """Expands the rows of a table, layer by layer.

    Args:
      rows: the table.
      shapes: shape of each parameter by name; the rows name exactly these.
    """
    rows = list(rows)
    named = {row.param_name for row in rows}
    # A table that does not fit its model is an error of this package, not of a file.
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
    """Returns the shape of each tensor by name; nothing is allocated."""
    shapes = {}
    for tensor_slice in slices:
        # A broadcast scalar has a shape, but no memory; einops rearranges its strides.
        scalar = np.broadcast_to(np.float32(0), tensor_slice.shape)
        size, *rest = _to_tensor(scalar, tensor_slice).shape
        size = size if tensor_slice.third is None else 3 * size
        shapes[tensor_slice.tensor_name] = (size, *rest)
    return shapes


def require_fit(
    source: str,
    slices: Iterable[TensorSlice],
    tensors: Mapping[str, Tensor],
    belongs_to_other_component: Callable[[str], bool],
) -> list[str]:
    """Compares the names, shapes and dtypes of `tensors` with what the table expects.

    The dtypes of weights may differ from tensor to tensor: fine-tuning on quantized
    weights leaves norms in float32 and the rest in bfloat16.

    Args:
      source: path of the tensors, for the message.
      slices: the table.
      tensors: the tensors of the files by name.
      belongs_to_other_component: name -> whether the tensor may be left out.

    Returns:
      The names of the tensors that are left out.

    Raises:
      CheckpointError: lists every tensor that is missing, unexpected, or of another
        shape, and how many are of another dtype.
    """
    expected = tensor_shapes(slices)
    lines, names_by_dtype = [], {}
    for name, shape in expected.items():
        if name not in tensors:
            lines.append(f"missing: {name} {list(shape)}")
        elif tensors[name].shape != shape:
            actual = list(tensors[name].shape)
            lines.append(f"shape: {name} is {actual}; expected {list(shape)}")
        elif tensors[name].dtype not in FLOAT_DTYPES:
            names_by_dtype.setdefault(tensors[name].dtype, []).append(name)
    others = [name for name in tensors if name not in expected]
    unexpected = [name for name in others if not belongs_to_other_component(name)]
    lines += [f"unexpected: {name} {list(tensors[name].shape)}" for name in unexpected]
    count = len(lines) + sum(map(len, names_by_dtype.values()))
    # One line for each dtype: in most cases the whole file has one.
    for dtype, (first, *rest) in names_by_dtype.items():
        which = f"{first} and {len(rest)} more are" if rest else f"{first} is"
        lines.append(f"dtype: {which} {dtype}; expected float32, bfloat16 or float16")
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{source}: {count} tensors do not fit its configuration, nothing was "
            f"loaded:\n  {listed}\n{_advice(lines)}"
        )
    return others


def _advice(lines: list[str]) -> str:
    """Returns what to do about the lines of `require_fit`."""
    kinds = {line.partition(":")[0] for line in lines}
    if kinds == {"missing"}:
        return "The files are incomplete, or of a smaller model: get all of them."
    if kinds == {"dtype"}:
        return "Save the weights as float32, in the program that made them."
    return "Use tensors and configuration of one model, without additions."


def read_params(
    slices: Iterable[TensorSlice],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields parameters by name, float32, reading one tensor at a time.

    Args:
      slices: the table.
      tensors: the tensors of the files by name.
      shapes: shape of each parameter by name.

    Raises:
      CheckpointError: after the last parameter, naming all tensors that are damaged.
    """
    by_name: dict[str, list[TensorSlice]] = {}
    for tensor_slice in slices:
        by_name.setdefault(tensor_slice.param_name, []).append(tensor_slice)
    damaged = {}
    for name, param_slices in by_name.items():
        array = np.empty(shapes[name], np.float32)
        for param_slice in param_slices:
            tensor_name = param_slice.tensor_name
            try:
                tensor = tensors[tensor_name].read()
                array[param_slice.at] = _to_param(tensor, param_slice)
            except CheckpointError as error:
                # Collected: one message for all, not a download for each.
                damaged[tensor_name] = str(error)
        yield name, array
    if damaged:
        raise CheckpointError("\n".join(damaged.values()))


def make_tensors(
    slices: Iterable[TensorSlice], arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that make the tensors, by name: one need be in memory at a time.

    Args:
      slices: the table.
      arrays: parameters by name.
      dtype: of the tensors.
    """
    # A tensor has one slice, or the three thirds that torch joins.
    by_name: dict[str, list[TensorSlice]] = {}
    for tensor_slice in slices:
        by_name.setdefault(tensor_slice.tensor_name, []).append(tensor_slice)

    def make(thirds: list[TensorSlice]) -> np.ndarray:
        thirds = sorted(thirds, key=lambda third: third.third or 0)
        blocks = [_to_tensor(arrays[t.param_name][t.at], t) for t in thirds]
        tensor = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return cast(thirds[0].tensor_name, tensor, dtype)

    # The default argument binds the value of this iteration, not of the last one.
    return {
        name: lambda thirds=thirds: make(thirds) for name, thirds in by_name.items()
    }


def _to_param(tensor: np.ndarray, tensor_slice: TensorSlice) -> np.ndarray:
    import einops

    if tensor_slice.third is not None:
        tensor = np.split(tensor, 3)[tensor_slice.third]
    layout = tensor_slice.layout
    if not layout:
        return tensor
    # The sizes of the parameter's axes tell einops how to split "(N H)".
    param = np.broadcast_to(np.float32(0), tensor_slice.shape)
    sizes = einops.parse_shape(param, layout.partition(" -> ")[2])
    return einops.rearrange(tensor, layout, **sizes)


def _to_tensor(param: np.ndarray, tensor_slice: TensorSlice) -> np.ndarray:
    """Inverse of `_to_param`, except that it returns the slice's third alone."""
    import einops

    if not tensor_slice.layout:
        return param
    left, _, right = tensor_slice.layout.partition(" -> ")
    return einops.rearrange(param, f"{right} -> {left}")


@functools.cache
def param_shapes(config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a model by name; nothing is computed.

    Args:
      config: SiglipConfig, DecoderConfig, (SiglipConfig, TextTowerConfig) or HiveConfig.
    """
    model, inputs = _model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}


def _model(config):
    """Returns the module, and inputs of the right shapes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    if isinstance(config, DecoderConfig):
        return Decoder(config, execution=SCANNED.decoder), (tokens,)
    if isinstance(config, SiglipConfig):
        return SiglipEncoder(config, execution=SCANNED.encoder), (_image(config),)
    if isinstance(config, HiveConfig):
        inputs = (_image(config.encoder), tokens, tokens == 0)
        return Hive(config, execution=SCANNED), inputs
    image, text = config
    # A text tower takes texts of its own length only.
    tokens = jnp.zeros((1, text.num_tokens), jnp.int32)
    return TwoTowers(image, text, execution=SCANNED), (_image(image), tokens)


def _image(config: SiglipConfig) -> jax.ShapeDtypeStruct:
    shape = (1, config.image_size, config.image_size, 3)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def resize_positions(position: np.ndarray, num_patches: int) -> np.ndarray:
    """Resizes a position embedding to another number of patches.

    Interpolates linearly with the corners of both grids aligned, as big_vision's image
    tower does when it loads weights.

    Args:
      position: float32[1, P, D] of a square grid.
      num_patches: of the new square grid.

    Returns:
      float32[1, num_patches, D]; `position` itself if num_patches is P.

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

    old_side, new_side = math.isqrt(old), math.isqrt(num_patches)
    grid = position.reshape(old_side, old_side, width)
    # order=1 is linear; scipy's default grid_mode=False aligns the corners.
    factor = new_side / old_side
    grid = scipy.ndimage.zoom(grid, (factor, factor, 1), order=1)
    return grid.reshape(1, num_patches, width)
