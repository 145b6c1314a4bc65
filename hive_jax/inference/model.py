"""Trained models: of a run with its provenance, or an encoder from any weights."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import Tokenizer, load_tokenizer
from hive_jax.errors import ConfigError
from hive_jax.models.siglip import SiglipConfig
from hive_jax.training.handover import restore_run
from hive_jax.training.runs import is_run, open_run_tower
from hive_jax.weights.parts import open_encoder


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model, and where it comes from.

    Attributes:
      config: config of the run.
      params: nested dict of its last parameters.
      checkpoint: provenance: name of the run, fusion, step, and a fingerprint of the
        parameters.
    """

    config: RunConfig
    params: dict
    checkpoint: dict

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run trained with."""
        return load_tokenizer(self.config.data.tokenizer)


def load_run(workdir: str) -> TrainedModel:
    """Loads the last checkpoint of a run.

    Raises:
      MissingInputError: there is no run in `workdir`, or it has no checkpoint.
      CheckpointError: the checkpoint is damaged.
    """
    config, params, meta = restore_run(workdir)
    checkpoint = {
        "run": config.name,
        "fusion": config.model.fusion,
        "step": meta["step"],
        "fingerprint": _joint_fingerprint(meta["fingerprints"]),
    }
    return TrainedModel(config, params, checkpoint)


def _joint_fingerprint(fingerprints: dict[str, str]) -> str:
    """One fingerprint for all parameters, 16 hexadecimal digits."""
    lines = [f"{k} {v}" for k, v in fingerprints.items() if k.startswith("params/")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An image tower.

    Attributes:
      name: for tables and messages.
      config: its architecture.
      params: nested dict, float32.
      preprocessing: preprocessing of images in training.
      fingerprint: `fingerprint` of its parameters.
    """

    name: str
    config: SiglipConfig
    params: dict
    preprocessing: str
    fingerprint: str


def load_encoder(name: str, path: str) -> Encoder:
    """Loads an encoder.

    Args:
      name: for tables and messages.
      path: workdir of a run, or weights as `open_encoder` takes them.

    Raises:
      MissingInputError: there is nothing at `path`.
      CheckpointError: no image tower can be read from it.
    """
    part = open_run_tower(path, "img") if is_run(path) else open_encoder(path)
    leaves = dict(part.leaves())
    preprocessing = part.preprocessing or "hf_bicubic"
    params = unflatten_dict(leaves, sep="/")
    return Encoder(name, part.config, params, preprocessing, fingerprint(leaves))


def fingerprint(leaves: dict[str, np.ndarray]) -> str:
    """Hashes parameters, name -> array, to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def parse_named_weights(arguments: Sequence[str]) -> dict[str, str]:
    """Parses NAME=PATH, or a PATH that names itself -> path by name.

    Raises:
      ConfigError: a name or path is empty, or two names are equal.
    """
    paths = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals:
            name, path = _default_name(argument), argument
        if not name or not path or name in paths:
            raise ConfigError(
                f"{argument!r} among {' '.join(arguments)}; expected a path, or "
                "NAME=PATH with names that differ"
            )
        paths[name] = path
    return paths


def _default_name(path: str) -> str:
    """The last component of a path, or the name of built-in weights."""
    return Path(path.removeprefix("builtin:")).name.removesuffix(".npz")
