"""big_vision's .npz files: arrays under the parameter names of hive_jax, with slashes.

Layers may be stored one by one (`encoderblock_0`, `encoderblock_1`, ...) or stacked
(`encoderblock`, layers on axis 0), as in hive_jax. big_vision's files have no metadata;
those written here have one more entry with the configurations, which big_vision ignores.
"""

import contextlib
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.io import atomic_write, require_regular
from hive_jax.json_text import parse_json
from hive_jax.models.config import DecoderConfig, SiglipConfig, TextTowerConfig
from hive_jax.weights.mapping import Row
from hive_jax.weights.safetensors import Tensor, require_finite

ABOUT = "hive_jax"  # name of the metadata entry
# (path, number, rest) of a parameter of one layer: "Transformer/encoderblock_3/...".
_LAYER = re.compile(r"(.*\bencoderblock)_(\d+)/(.+)")
# What zipfile and numpy.lib.format raise for files that are cut or changed.
_DAMAGE = (
    *(ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error),
    RuntimeError,  # zipfile's error for encryption and unknown compression
)


def open_npz(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Opens a file without reading its arrays.

    Where names start with `params/`, the prefix is removed and other names (the optimizer
    of a whole training state) are ignored. Pickled objects are never loaded.

    Returns:
      The tensors by name, and the metadata of `save_npz`: {} in big_vision's own files.

    Raises:
      MissingInputError: there is no such file.
      CheckpointError: not an .npz file of plain arrays.
    """
    if not path.exists():
        raise MissingInputError(
            f"{path}: no such file or folder; expected weights: a Hugging Face folder "
            "or hub id, or a big_vision .npz"
        )
    require_regular(path, error=CheckpointError)
    try:
        # By zipfile and not np.load, to read shapes without values and check checksums.
        file = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is not an .npz file, or damaged or incomplete: {error}. Expected "
            "what numpy.savez writes. If it was downloaded, compare its size and try "
            "again."
        ) from None
    # np.savez writes each array as an entry NAME.npy.
    entries = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
    about = entries.pop(ABOUT, None)
    tensors = {name: _tensor(file, path, name, entries[name]) for name in entries}
    if any(name.startswith("params/") for name in tensors):
        tensors = {
            name.removeprefix("params/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("params/")
        }
    if about is None:
        return tensors, {}
    # An array of one string: np.savez stores nothing but arrays.
    text = str(_read(file, path, ABOUT, about))
    return tensors, parse_json(text, f"{path}: {ABOUT!r}", dict, error=CheckpointError)


def _tensor(file: zipfile.ZipFile, path: Path, name: str, info) -> Tensor:
    with _damage_named(path, name), file.open(info) as stream:
        # The header alone; the values stay in the file.
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of the npy format")
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError("an array of objects")
        # Checked now, so that a wrong shape is found before anything is loaded.
        if info.file_size - stream.tell() != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"its size is not that of {dtype}{list(shape)}")
    return Tensor(shape, str(_restored(dtype)), lambda: _read(file, path, name, info))


def _restored(dtype: np.dtype) -> np.dtype:
    """Returns bfloat16 for the void dtype of 2 bytes that NumPy stores it as."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype


def _read(file: zipfile.ZipFile, path: Path, name: str, info) -> np.ndarray:
    with _damage_named(path, name), file.open(info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # to the end, where zipfile compares the checksum
    array = array.view(_restored(array.dtype))
    return array if array.dtype.kind == "U" else require_finite(array, name, path)


@contextlib.contextmanager
def _damage_named(path: Path, name: str):
    try:
        yield
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: cannot read {name!r}: {error}. Expected plain arrays; pickled "
            "objects can run code and are not read."
        ) from None


def save_npz(path: str | os.PathLike, params: Mapping, about: Mapping) -> None:
    """Writes parameters as `params/...`, atomically.

    Args:
      path: the file to write; must not exist.
      params: arrays by name, in nested dicts or with slashes.
      about: metadata, JSON values: the configurations, and the image preprocessing.

    Raises:
      OutputError: the file exists, or cannot be written.
    """
    arrays = flatten_dict({"params": params}, sep="/")
    # A string array has no objects, so it needs no pickle.
    arrays[ABOUT] = np.asarray(json.dumps(about))
    with (
        atomic_write(path, overwrite=False) as temporary,
        open(temporary, "wb") as file,
    ):
        # Uncompressed: float weights hardly compress, and reading would be slower.
        np.savez(file, **arrays)


# Names in big_vision's Gemma of q, k and v in one array, and of q and kv in two.
_JOINT = "layers/attn/qkv_einsum/w"
_QUERIES, _KEYS_VALUES = "layers/attn/q_einsum/w", "layers/attn/kv_einsum/w"


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Splits the joint projections of a Gemma into `q_einsum` and `kv_einsum`.

    big_vision (models/ppp/gemma.py) has them in one array [L, 3, N, E, H] if there are
    as many kv heads as query heads.

    Raises:
      CheckpointError: a joint array does not have 3 on axis 1.
    """
    result = dict(tensors)
    for name in [name for name in tensors if name.endswith(_JOINT)]:
        joint, start = result.pop(name), name.removesuffix(_JOINT)
        depth, *middle, heads, width, head_dim = joint.shape
        if middle != [3]:
            raise CheckpointError(
                f"{name} is {list(joint.shape)}; expected 3 on axis 1"
            )
        shape = (heads, width, head_dim)
        result[start + _QUERIES] = Tensor(
            (depth, *shape), joint.dtype, lambda joint=joint: joint.read()[:, 0]
        )
        result[start + _KEYS_VALUES] = Tensor(
            (depth, 2, *shape), joint.dtype, lambda joint=joint: joint.read()[:, 1:]
        )
    return result


def join_qkv(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `split_qkv`, where there are as many kv heads as query heads."""
    result = dict(arrays)
    for name in [name for name in arrays if name.endswith(_QUERIES)]:
        start = name.removesuffix(_QUERIES)
        queries, keys_values = arrays[name], arrays[start + _KEYS_VALUES]
        # [L, N, E, H] and [L, 2, K, E, H] with N = K -> [L, 3, N, E, H].
        if queries.shape[1] == keys_values.shape[2]:
            del result[name], result[start + _KEYS_VALUES]
            joint = np.concatenate([queries[:, None], keys_values], axis=1)
            result[start + _JOINT] = joint
    return result


def branch_rows(names, branch: str, tensors: Mapping[str, Tensor]) -> list[Row]:
    """Returns the table of a branch.

    Args:
      names: names of the parameters in the branch.
      branch: prefix of the names in the file, e.g. "img/", or "".
      tensors: tensors of the file by name, to see whether layers are stacked.
    """
    one_by_one = any(_LAYER.fullmatch(n) for n in tensors if n.startswith(branch))

    def tensor_name(name: str) -> str:
        if one_by_one:
            # The "{}" makes it a row of a tensor for each layer.
            name = name.replace("encoderblock/", "encoderblock_{}/", 1)
        return branch + name

    return [Row(name, tensor_name(name)) for name in names]


class Shapes(dict):
    """Shapes of a branch's arrays, by parameter name, with the layers stacked.

    Attributes:
      branch: prefix of the names in the file.
      source: path of the file, for messages.
      used: names in the file that a configuration was read from.
    """

    def __init__(self, shapes: Mapping[str, tuple], branch: str, source: str):
        super().__init__(shapes)
        self.used: list[str] = []
        self.branch = branch
        self.source = source

    def shape_of(self, name: str, rank: int) -> tuple[int, ...]:
        """Returns the shape of an array, for reading a configuration from it.

        Args:
          name: of the parameter.
          rank: expected number of axes.

        Raises:
          CheckpointError: the array is missing or has another rank.
        """
        self.used.append(self.branch + name)
        if len(self.get(name, ())) != rank:
            raise CheckpointError(
                f"{self.source}: {self.branch}{name} is {list(self.get(name, ())) or 'missing'}; "
                f"expected {rank} axes, which the configuration is read from"
            )
        return self[name]


def stacked_shapes(tensors: Mapping[str, Tensor], branch: str, source: str) -> Shapes:
    """Returns the shapes of a branch's arrays, as if its layers were stacked.

    Args:
      tensors: tensors of the file by name.
      branch: prefix of the names in the file, e.g. "img/", or "".
      source: path of the file, for messages.
    """
    shapes, layers = {}, set()
    for name, tensor in tensors.items():
        if not name.startswith(branch):
            continue
        if layer := _LAYER.fullmatch(name):
            layers.add(layer[2])
            name = f"{layer[1]}/{layer[3]}"
        shapes[name.removeprefix(branch)] = tensor.shape
    if layers:
        # Missing or additional layers are found when names and shapes are compared.
        shapes = {
            name: (len(layers), *shape) if "encoderblock/" in name else shape
            for name, shape in shapes.items()
        }
    return Shapes(shapes, branch, source)


_QUERY = "encoderblock/MultiHeadDotProductAttention_0/query/kernel"
_MLP = "encoderblock/MlpBlock_0/Dense_0/kernel"


def vision_config(shapes: Shapes) -> SiglipConfig:
    """Reads the architecture of an image tower from shapes.

    The side of the images is taken to be a whole number of patches, because the arrays
    do not show a remainder.

    Raises:
      CheckpointError: an array that it is read from is missing or of another rank.
    """
    depth, width, num_heads, _ = shapes.shape_of(f"Transformer/{_QUERY}", 4)
    patch_size = shapes.shape_of("embedding/kernel", 4)[0]
    # If the number of patches is not a square, the check of all shapes reports it.
    side = math.isqrt(shapes.shape_of("pos_embedding", 3)[1])
    return SiglipConfig(
        width,
        depth,
        shapes.shape_of(f"Transformer/{_MLP}", 3)[-1],
        num_heads,
        patch_size,
        side * patch_size,
        map_head=any(name.startswith("MAPHead_0/") for name in shapes),
    )


def text_config(shapes: Shapes) -> TextTowerConfig:
    """Reads the architecture of a text tower from shapes; errors as `vision_config`."""
    depth, width, num_heads, _ = shapes.shape_of(f"Encoder_0/{_QUERY}", 4)
    return TextTowerConfig(
        vocab_size=shapes.shape_of("Embed_0/embedding", 2)[0],
        num_tokens=shapes.shape_of("pos_embedding", 3)[1],
        width=width,
        depth=depth,
        mlp_dim=shapes.shape_of(f"Encoder_0/{_MLP}", 3)[-1],
        num_heads=num_heads,
        out_dim=shapes.shape_of("head/kernel", 2)[-1],
    )


def decoder_config(shapes: Shapes) -> DecoderConfig:
    """Reads the architecture of a Gemma 1 from shapes.

    Raises:
      CheckpointError: a Gemma 2 or 3, whose soft-caps, windows and rotary bases no array
        shows; or as `vision_config`.
    """
    vocab_size, width = shapes.shape_of("embedder/input_embedding", 2)
    # q_einsum [L, N, E, H], kv_einsum [L, 2, K, E, H], mlp/linear [L, F, E].
    depth, num_heads, _, head_dim = shapes.shape_of("layers/attn/q_einsum/w", 4)
    num_kv_heads = shapes.shape_of("layers/attn/kv_einsum/w", 5)[2]
    mlp_dim = shapes.shape_of("layers/mlp/linear", 3)[1]
    # Gemma 2 and 3 alone have norms after attention and MLP.
    if "layers/post_attention_norm/scale" in shapes:
        raise CheckpointError(
            f"{shapes.source}: a decoder with norms after its blocks, a Gemma 2 or 3. Its "
            "soft-caps, windows and rotary bases are not in the file: name the model "
            "with --decoder_config (hive_jax.import_weights), config= (load_decoder), "
            "or set all of config.model.decoder"
        )
    return DecoderConfig(
        vocab_size, width, depth, mlp_dim, num_heads, num_kv_heads, head_dim
    )
