"""Names and layouts of a model's tensors in two formats, and the way between them.

One table a model serves both directions. A row says which tensor of theirs is which
part of ours, and how it is laid out; ours have the layers stacked on a leading axis.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from hive_jax.errors import CheckpointError
from hive_jax.weights.tensors import Tensor, cast, stored_dtype


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of theirs.

    Attributes:
      ours: name of our array, e.g. "layers/attn/kv_einsum/w".
      theirs: their name; "{}" in it stands for the number of the layer, from 0.
      layout: einops pattern "theirs -> ours", e.g. "(N H) E -> N E H"; empty where
        both are laid out alike.
      slot: index into our array (after its layers) where it holds several of theirs.
      third: which third of their rows it is, where theirs holds three of ours.
    """

    ours: str
    theirs: str
    layout: str = ""
    slot: int | None = None
    third: int | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
    """A row of one layer: `ours[at]`, of the given shape, is (a third of) `theirs`."""

    ours: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    theirs: str
    layout: str
    third: int | None


def pieces(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> list[Piece]:
    """The rows, layer by layer.

    Args:
      shapes: of our arrays by name. Each must be in some row, and no row may name
        another.
    """
    rows = list(rows)
    named = {row.ours for row in rows}
    assert named == set(shapes), named ^ set(shapes)
    result = []
    for row in rows:
        stacked = "{}" in row.theirs
        for layer in range(shapes[row.ours][0]) if stacked else [None]:
            at = tuple(index for index in (layer, row.slot) if index is not None)
            shape = shapes[row.ours][len(at) :]
            theirs = row.theirs.format(layer) if stacked else row.theirs
            piece = Piece(row.ours, at, shape, theirs, row.layout, row.third)
            result.append(piece)
    return result


def their_shapes(parts: Iterable[Piece]) -> dict[str, tuple[int, ...]]:
    """The shape of each of their tensors; nothing is allocated."""
    shapes = {}
    for piece in parts:
        nothing = np.broadcast_to(np.float32(0), piece.shape)
        rows, *rest = _as_theirs(nothing, piece).shape
        shapes[piece.theirs] = (rows if piece.third is None else 3 * rows, *rest)
    return shapes


def require_fit(
    source: str,
    parts: Iterable[Piece],
    tensors: Mapping[str, Tensor],
    beside: Callable[[str], bool],
) -> list[str]:
    """Compares the names, shapes and dtypes of `tensors` with what the table expects.

    Args:
      source: where the tensors are, for the message.
      beside: whether a name belongs to another part of the same file.

    Returns:
      The names that were left out because of `beside`.

    Raises:
      CheckpointError: all that is missing, unexpected, or of another shape or dtype.
    """
    expected = their_shapes(parts)
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
    unexpected = [name for name in others if not beside(name)]
    lines += [f"unexpected: {name} {list(tensors[name].shape)}" for name in unexpected]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{source}: {len(lines)} tensors do not fit its configuration, nothing was "
            f"loaded:\n  {listed}\nGet the files again, or those of one model."
        )
    return others


def to_ours(
    parts: Iterable[Piece],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, np.ndarray]]:
    """Our arrays, float32, one after the other; theirs are read one at a time.

    Raises:
      CheckpointError: after the last one, with all tensors that are damaged.
    """
    by_name: dict[str, list[Piece]] = {}
    for piece in parts:
        by_name.setdefault(piece.ours, []).append(piece)
    damaged = {}
    for name, members in by_name.items():
        array = np.empty(shapes[name], np.float32)
        for piece in members:
            try:
                array[piece.at] = _as_ours(tensors[piece.theirs].read(), piece)
            except CheckpointError as error:
                damaged[piece.theirs] = str(error)
        yield name, array
    if damaged:
        raise CheckpointError("\n".join(damaged.values()))


def to_theirs(
    parts: Iterable[Piece], arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> dict[str, Callable[[], np.ndarray]]:
    """For each of their names the function that makes its tensor in `dtype`."""
    by_name: dict[str, list[Piece]] = {}
    for piece in parts:
        by_name.setdefault(piece.theirs, []).append(piece)

    def make(members: list[Piece]) -> np.ndarray:
        members = sorted(members, key=lambda piece: piece.third or 0)
        found = [_as_theirs(arrays[piece.ours][piece.at], piece) for piece in members]
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return cast(members[0].theirs, whole, dtype)

    return {
        name: lambda members=members: make(members) for name, members in by_name.items()
    }


def _as_ours(theirs: np.ndarray, piece: Piece) -> np.ndarray:
    import einops

    if piece.third is not None:
        theirs = np.split(theirs, 3)[piece.third]
    if not piece.layout:
        return theirs
    right = piece.layout.partition(" -> ")[2]
    ours = np.broadcast_to(np.float32(0), piece.shape)
    return einops.rearrange(theirs, piece.layout, **einops.parse_shape(ours, right))


def _as_theirs(ours: np.ndarray, piece: Piece) -> np.ndarray:
    """Without the other two thirds."""
    import einops

    if not piece.layout:
        return ours
    left, _, right = piece.layout.partition(" -> ")
    return einops.rearrange(ours, f"{right} -> {left}")
