"""Runs that others start from: their configs, and their towers as weights."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import RunConfig, from_dict
from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.siglip import SiglipConfig
from hive_jax.training.checkpointing.manager import Checkpoints

TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class RunTower:
    """A tower of a run's last checkpoint, as weights.sources.WeightSource has those of files.

    Attributes:
      source: the workdir.
      branch: "img" or "llm".
    """

    source: str
    branch: str
    config: SiglipConfig | DecoderConfig
    preprocessing: str
    tokenizer: str

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and float32 arrays. Raises CheckpointError."""
        with checkpoints_of(self.source) as checkpoints:
            params, _ = checkpoints.restore_params(checkpoints.stored_params())
        for name, leaf in flatten_dict(params[self.branch], sep="/").items():
            yield name, np.asarray(leaf)


def is_run(path: str) -> bool:
    """Whether it is the workdir of a run, and not weights in files."""
    return bool(path) and (Path(path) / "checkpoints").is_dir()


def checkpoints_of(workdir: str) -> Checkpoints:
    """To read from. Raises MissingInputError if there is no such run."""
    if not is_run(workdir):
        raise MissingInputError(f"no checkpoint in {workdir}: no such run")
    return Checkpoints(workdir, read_only=True)


def has_checkpoint(workdir: str) -> bool:
    if not is_run(workdir):
        return False
    with checkpoints_of(workdir) as checkpoints:
        return checkpoints.latest_step() is not None


def stored_config(workdir: str) -> RunConfig:
    """The config of a run, as its last checkpoint has it; its tokenizer is the copy
    beside the checkpoints."""
    with checkpoints_of(workdir) as checkpoints:
        config = from_dict(checkpoints.read_meta()["config"])
    kept = Path(workdir) / TOKENIZER_FOLDER
    if kept.is_dir():
        data = dataclasses.replace(config.data, tokenizer=str(kept))
        config = dataclasses.replace(config, data=data)
    return config


def open_run_tower(workdir: str, branch: str) -> RunTower:
    """A tower of a run. Raises MissingInputError, CheckpointError: it has none."""
    config = stored_config(workdir)
    with checkpoints_of(workdir) as checkpoints:
        found = sorted(checkpoints.stored_params())
    if branch not in found:
        raise CheckpointError(f"{workdir} has no {branch}, only {', '.join(found)}")
    tower = config.model.encoder if branch == "img" else config.model.decoder
    return RunTower(
        workdir, branch, tower, config.data.preprocessing, config.data.tokenizer
    )
