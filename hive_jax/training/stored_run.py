"""Runs on disk that others start from: their configs, and their components as
weights."""

import dataclasses
import functools
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
_BRANCHES = {"encoder": "img", "decoder": "llm"}


def is_run(path: str) -> bool:
    """Whether a path is the workdir of a run, and not weights in files."""
    return bool(path) and (Path(path) / "checkpoints").is_dir()


class StoredRun:
    """The newest checkpoint of a run, opened once to be read.

    The manager beneath is read-only and holds no threads or files: there is nothing to
    close.
    """

    def __init__(self, workdir: str, checkpoints: Checkpoints):
        self.workdir = workdir
        self._checkpoints = checkpoints

    @functools.cached_property
    def meta(self) -> dict:
        """The checkpoint's metadata; CheckpointError if none can be read."""
        return self._checkpoints.read_meta()

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run's config; its tokenizer is the copy beside the checkpoints."""
        config = from_dict(self.meta["config"])
        tokenizer = Path(self.workdir) / TOKENIZER_FOLDER
        if tokenizer.is_dir():
            data = dataclasses.replace(config.data, tokenizer=str(tokenizer))
            config = dataclasses.replace(config, data=data)
        return config

    @functools.cached_property
    def abstract_params(self) -> dict:
        """Nested dict of shapes and dtypes."""
        return self._checkpoints.stored_params()

    def read_params(self, abstract: dict | None = None) -> tuple[dict, dict]:
        """(parameters, metadata of their checkpoint), whatever machine it ran on.

        Args:
          abstract: all parameters with the shardings to read them in; by default on
            one device.

        Raises:
          CheckpointError: leaves differ from `abstract`, or are damaged.
        """
        return self._checkpoints.restore_params(abstract or self.abstract_params)

    def component(self, name: str) -> "RunComponent":
        """The "encoder" or "decoder". CheckpointError if the run has none."""
        branch = _BRANCHES[name]
        if branch not in self.abstract_params:
            branches = ", ".join(sorted(self.abstract_params))
            raise CheckpointError(f"{self.workdir} has no {branch}, only {branches}")
        return RunComponent(self, name)


@dataclasses.dataclass(frozen=True)
class RunComponent:
    """A component of a run, with the attributes that weights.sources.WeightSource has of files.

    Attributes:
      run: the run.
      name: "encoder" or "decoder".
    """

    run: StoredRun
    name: str

    @property
    def source(self) -> str:
        return self.run.workdir

    @property
    def config(self) -> SiglipConfig | DecoderConfig:
        return getattr(self.run.config.model, self.name)

    @property
    def preprocessing(self) -> str:
        return self.run.config.data.preprocessing

    @property
    def tokenizer(self) -> str:
        return self.run.config.data.tokenizer

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and float32 arrays. Raises CheckpointError."""
        params, _ = self.run.read_params()
        branch = params[_BRANCHES[self.name]]
        for name, leaf in flatten_dict(branch, sep="/").items():
            yield name, np.asarray(leaf)


def find_run(workdir: str) -> StoredRun | None:
    """The run in `workdir`; None where there is no checkpoint."""
    if not is_run(workdir):
        return None
    checkpoints = Checkpoints(workdir, read_only=True)
    if checkpoints.latest_step() is None:
        return None
    return StoredRun(workdir, checkpoints)


def open_run(workdir: str) -> StoredRun:
    """The run in `workdir`. Raises MissingInputError if there is no checkpoint."""
    run = find_run(workdir)
    if run is None:
        raise MissingInputError(f"no checkpoint in {workdir}: no such run")
    return run
