"""Whose answers and features are looked at: a run, named so that others find it."""

import dataclasses
import hashlib

from hive_jax.config import RunConfig
from hive_jax.training import stored_run


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model.

    Attributes:
      config: of the run.
      params: nested dict of its last parameters.
      checkpoint: where it is, its step and a fingerprint of the parameters.
    """

    config: RunConfig
    params: dict
    checkpoint: dict


def open_run(workdir: str) -> Subject:
    """The last checkpoint of a run. Raises MissingInputError, CheckpointError."""
    run = stored_run.open_run(workdir)
    config, (params, meta) = run.config, run.read_params()
    checkpoint = {
        "run": config.name,
        "fusion": config.model.fusion,
        "step": meta["step"],
        "fingerprint": _joined(meta["fingerprints"]),
    }
    return Subject(config, params, checkpoint)


def _joined(fingerprints: dict[str, str]) -> str:
    """One for all parameters."""
    lines = [f"{k} {v}" for k, v in fingerprints.items() if k.startswith("params/")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
