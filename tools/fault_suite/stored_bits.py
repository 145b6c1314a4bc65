"""The bits of stored steps, independent of the fingerprints in the checkpoints."""

import dataclasses
import hashlib
import logging
import os
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.config import MeshConfig
from hive_jax.config.cli import read_config
from hive_jax.errors import HiveError
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.resolve import resolve_config
from hive_jax.training.sharding import make_mesh
from hive_jax.training.train_step import Program
from tools.fault_suite import micro_run


@dataclasses.dataclass
class Restored:
    """What a start finds in a workdir.

    Attributes:
      step: step that was restored; None for a new run or an error.
      bits: SHA-256 of all its leaves.
      warnings: log messages.
      error: message of a HiveError, or type and message of any other exception.
      is_refusal: whether `error` is a HiveError's.
    """

    step: int | None = None
    bits: str = ""
    warnings: str = ""
    error: str = ""
    is_refusal: bool = False


def train_short(workdir: Path, cache: Path, total_steps: int, every: int) -> None:
    """Trains all towers of the micro model in a process.

    Args:
      workdir: folder of the run.
      cache: folder of compiled programs.
      total_steps: steps of the run.
      every: steps between two saves, of which all are kept.
    """
    options = (
        *(f"--config.total_steps={total_steps}", f"--config.checkpoint_every={every}"),
        f"--config.max_to_keep={total_steps}",
    )
    command = micro_run.command("stage1.py", workdir, micro_run.ALL_TRAIN, *options)
    micro_run.finish(micro_run.start(command, cache))


def save_random(workdir: os.PathLike | str, num_steps: int) -> None:
    """Saves random states of the micro model, as a run that trains all towers would.

    Args:
      workdir: folder of the run.
      num_steps: steps 1 to `num_steps` are saved.
    """
    overrides = (*micro_run.MICRO, micro_run.ALL_TRAIN)
    config = resolve_config(read_config(f"stage1:{micro_run.TOWERS}", overrides)).config
    one_device = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    abstract = Program(config, one_device).abstract_state
    with Checkpoints(str(workdir), keep=num_steps) as checkpoints:
        for step in range(1, num_steps + 1):
            rng = np.random.default_rng(step)
            state = jax.tree.map(
                lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(leaf.dtype),
                abstract,
            )
            state = state.replace(step=np.int32(step))
            checkpoints.save(step, jax.device_put(state), {})


def abstract_leaves(workdir: os.PathLike | str) -> dict:
    """Returns the abstract leaves of the newest step of a run, as a nested dict."""
    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    leaves = {
        name: trees.parse_description(text) for name, text in meta["leaves"].items()
    }
    return unflatten_dict(leaves, sep="/")


def bits_of_steps(workdir: Path, abstract: dict) -> dict[int, str]:
    """Returns step -> SHA-256 of its leaves, of all steps of an undamaged run.

    Args:
      workdir: folder of the run.
      abstract: from `abstract_leaves`.
    """
    bits = {}
    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        for step in micro_run.steps(workdir):
            bits[step] = bits_of(checkpoints.restore(abstract, step)[0])
    return bits


def restore(
    workdir: os.PathLike | str, abstract: dict, read_only: bool = True
) -> Restored:
    """Restores a workdir's newest good step, as the start of a run does.

    Args:
      workdir: folder of the run.
      abstract: from `abstract_leaves`.
      read_only: leave damaged steps under their names.
    """
    result, handler = Restored(), _Collector()
    logger = logging.getLogger("hive_jax")
    before, logger.handlers = logger.handlers, [handler]
    propagate, logger.propagate = logger.propagate, False
    try:
        with Checkpoints(str(workdir), read_only=read_only) as checkpoints:
            restored = checkpoints.restore(abstract)
            if restored is not None:
                result.step, result.bits = restored[1]["step"], bits_of(restored[0])
    except HiveError as error:
        result.error, result.is_refusal = str(error), True
    except Exception as error:  # noqa: BLE001 - any other is a fault of the package
        result.error = f"{type(error).__name__}: {error}"
    finally:
        logger.handlers, logger.propagate = before, propagate
    result.warnings = "\n".join(handler.messages)
    return result


def bits_of(tree) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and bytes of all leaves."""
    sha = hashlib.sha256()
    for name, leaf in trees.flatten(tree).items():
        array = np.asarray(jax.device_get(leaf))
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


class _Collector(logging.Handler):
    """Keeps the messages of log records."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
