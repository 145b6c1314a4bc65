"""Frozen encoders, from where people have them."""

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.console import parse_unique_paths
from hive_jax.models.siglip import SiglipConfig
from hive_jax.training.resolve import open_weights


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An image tower.

    Attributes:
      params: nested dict, float32.
      preprocessing: that it was trained with.
      fingerprint: of its parameters.
    """

    name: str
    config: SiglipConfig
    params: dict
    preprocessing: str
    fingerprint: str


def named(init: str) -> dict[str, str]:
    """ "A=PATH,B=PATH" or a single path -> path by name. Raises ConfigError."""
    return parse_unique_paths(init.split(","), _name_of)


def load(name: str, path: str) -> Encoder:
    """The encoder at a path: a run's workdir, or weights as `open_weights` takes them.

    Raises MissingInputError, CheckpointError.
    """
    part = open_weights(path, "encoder")
    leaves = dict(part.leaves())
    preprocessing = part.preprocessing or "hf_bicubic"
    params = unflatten_dict(leaves, sep="/")
    return Encoder(name, part.config, params, preprocessing, fingerprint(leaves))


def fingerprint(leaves: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits that change with any bit of any parameter."""
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def _name_of(path: str) -> str:
    """The end of a path, without what no file may be called."""
    return Path(path.removeprefix("builtin:")).name.removesuffix(".npz")
