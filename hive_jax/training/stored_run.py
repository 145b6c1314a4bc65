"""Runs on disk, opened for reading: their configs, parameters and components."""

import dataclasses
import functools
import os
from collections.abc import Iterator

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.buckets import as_path
from hive_jax.config import RunConfig, from_dict
from hive_jax.console import log
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import CheckpointError, HiveError, MissingInputError
from hive_jax.io import is_folder, read_json, require_path
from hive_jax.json_text import require_types
from hive_jax.models.config import DecoderConfig, SiglipConfig
from hive_jax.training.checkpointing.manager import Checkpoints

# In the workdir: a run has to be usable after its tokenizer's source is gone.
TOKENIZER_FOLDER = "tokenizer"
# Branch of the parameter tree of each component.
_BRANCHES = {"encoder": "img", "decoder": "llm"}


def is_run(path: str) -> bool:
    """Returns whether a path is the workdir of a run, rather than weight files.

    Raises ConfigError for a URL that cannot be opened.
    """
    require_path(path, "path")
    return bool(path) and is_folder(os.path.join(path, "checkpoints"))


class StoredRun:
    """The newest checkpoint of a run, opened for reading; see `open_run`.

    The checkpoint manager is read-only and holds no threads or files, so there is
    nothing to close.

    Args:
      workdir: folder of the run.
      checkpoints: of the workdir, read-only.
    """

    def __init__(self, workdir: str, checkpoints: Checkpoints):
        self.workdir = workdir
        self._checkpoints = checkpoints

    @functools.cached_property
    def meta(self) -> dict:
        """Metadata of the checkpoint. Raises CheckpointError if none can be read."""
        return self._checkpoints.read_meta()

    @functools.cached_property
    def config(self) -> RunConfig:
        """Config of the run. Its tokenizer is the copy in the workdir: the original
        may have moved or changed. The original is used if the copy cannot be read."""
        config = from_dict(self.meta["config"])
        tokenizer = as_path(self.workdir) / TOKENIZER_FOLDER
        if not tokenizer.is_dir():
            return config
        try:
            load_tokenizer(str(tokenizer))
        except HiveError as error:
            log(f"{error}; using {config.data.tokenizer}")
            return config
        data = dataclasses.replace(config.data, tokenizer=str(tokenizer))
        return dataclasses.replace(config, data=data)

    @functools.cached_property
    def abstract_params(self) -> dict:
        """Nested dict of the shapes and dtypes of the parameters."""
        return self._checkpoints.stored_params()

    def read_params(self, abstract: dict | None = None) -> tuple[dict, dict]:
        """Returns the parameters and the metadata of their checkpoint.

        Args:
          abstract: nested dict of `jax.ShapeDtypeStruct` of the parameters to read, with
            their shardings; by default of all, on one device.

        Raises:
          CheckpointError: leaves differ from `abstract`, or are damaged.
        """
        if abstract is None:
            abstract = self.abstract_params
        return self._checkpoints.restore_params(abstract)

    def component(self, name: str) -> "RunComponent":
        """Returns the "encoder" or "decoder". Raises CheckpointError if the run has
        none."""
        # A run may lack one: fusion "none" has no encoder, imported weights may be of
        # one tower.
        branch = _BRANCHES[name]
        if branch not in self.abstract_params:
            branches = ", ".join(sorted(self.abstract_params))
            raise CheckpointError(f"{self.workdir} has no {branch}, only {branches}")
        return RunComponent(self, name)


@dataclasses.dataclass(frozen=True)
class RunComponent:
    """A component of a run, with the interface of `weights.sources.WeightSource`.

    Attributes:
      run: the run.
      name: "encoder" or "decoder".
      source: workdir, for messages.
      config: architecture.
      preprocessing: of images, as for config.data.
      tokenizer: path, as for config.data.
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
        """Yields names and float32 arrays. Raises CheckpointError for damage."""
        branch = _BRANCHES[self.name]
        params, _ = self.run.read_params({branch: self.run.abstract_params[branch]})
        for name, leaf in flatten_dict(params[branch], sep="/").items():
            yield name, np.asarray(leaf)


def read_result(workdir: str | os.PathLike) -> dict | None:
    """Returns the result.json of a run; None if it has not finished.

    Raises DataError if its "validation" or "relative_distance" are not numbers by name.
    """
    path = as_path(workdir) / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    require_types(result, {"validation": dict}, str(path))
    for key in ("validation", "relative_distance"):
        numbers = result.setdefault(key, {})
        require_types(result, {key: dict}, str(path))
        types = dict.fromkeys(numbers, int | float)
        require_types(numbers, types, f"{path}: {key}")
    return result


def find_run(workdir: str) -> StoredRun | None:
    """Returns the run in `workdir`; None if it has no checkpoint."""
    if not is_run(workdir):
        return None
    checkpoints = Checkpoints(workdir, read_only=True)
    # A run that was killed before its first save has nothing to start from.
    if checkpoints.latest_step() is None:
        return None
    return StoredRun(workdir, checkpoints)


def open_run(workdir: str) -> StoredRun:
    """Returns the run in `workdir`. Raises MissingInputError if it has no checkpoint."""
    run = find_run(workdir)
    if run is None:
        raise MissingInputError(f"no checkpoint in {workdir}: no such run")
    return run
