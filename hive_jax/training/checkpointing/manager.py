"""Checkpoints of a run: saved asynchronously during training, verified when read.

Steps are stored by `OrbaxSteps` in a folder and by `BucketSteps` in a bucket. What
neither does is added here: both restore flipped bits without an error, Orbax casts
dtypes, names no leaf when shapes differ, and forgets steps after a failed save.

The `meta` of a step carries a description and a fingerprint of every leaf, and its own
digest.
"""

import contextlib
import logging
import os
import time
from typing import Any, Self

from flax import traverse_util

from hive_jax.buckets import is_url
from hive_jax.errors import (
    CheckpointError,
    MissingInputError,
    NumericsError,
    OutputError,
)
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.bucket_steps import (
    BucketSteps,
    is_copied_from_bucket,
)
from hive_jax.training.checkpointing.integrity import (
    DamagedError,
    classify_read_errors,
    digest,
    first_line,
    inspect_leaves,
)
from hive_jax.training.checkpointing.orbax_steps import OrbaxSteps

_MAX_FAILED_SAVES = 3  # in a row: a disk may be full for a moment

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`; a context manager.

    Args:
      workdir: folder or URL of the run; created unless `read_only`.
      keep: number of newest steps to keep.
      read_only: never write, rename or delete anything.

    Raises:
      OutputError: the folder cannot be written.
    """

    def __init__(self, workdir: str, *, keep: int = 3, read_only: bool = False):
        folder = os.path.join(workdir, "checkpoints")
        self.directory = folder if is_url(folder) else os.path.abspath(folder)
        self._keep = keep
        self._read_only = read_only
        self._current = None  # the step that this run last saved or restored
        self._failed_saves = 0
        self._store = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused_exception) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts saving; returns when `state` may be donated to the next step.

        Does nothing if this run saved or restored that same step last. A failed
        write costs one warning and is retried with the next step's save.

        Args:
          step: training step that the state has reached.
          state: dataclass with `step`, `params` and `opt_state`.
          meta: JSON values to store beside it.

        Raises:
          CheckpointError: the step exists already; nothing is ever overwritten.
          NumericsError: a leaf has NaN or infinity; it is named, and nothing is saved.
          OutputError: three saves in a row have failed.
        """
        self.check(wait=True)  # one save at a time
        if step == self._current:
            return
        leaves = trees.flatten(state)
        fingerprints, not_finite = inspect_leaves(leaves)
        if not_finite:
            raise NumericsError(
                f"step {step} is not saved: NaN or infinity in {trees.first_names(not_finite)}"
            )
        meta = meta | {
            "step": step,
            "leaves": trees.describe(leaves),
            "fingerprints": fingerprints,
        }
        sealed = {"meta": meta, "digest": digest(meta)}
        self._current = step
        with self._failure_reported():
            if step in self._store.all_steps():
                raise CheckpointError(
                    f"{self.directory}/{step} exists already and is not overwritten. "
                    f"Move the steps from {step} on away to train them again."
                )
            self._store.save(step, leaves, sealed)

    def check(self, wait: bool = False) -> bool:
        """Reports a save that failed since the last call; cheap enough for any step.

        Args:
          wait: wait for a save in progress instead of leaving it for later.

        Returns:
          False if the last save failed.
        """
        with self._failure_reported():
            if self._store.poll(wait) and self._current is not None:
                self._failed_saves = 0
        return self._failed_saves == 0

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises OutputError if it failed."""
        if not self.check(wait=True):
            raise OutputError(
                f"the last checkpoint could not be written to {self.directory}; "
                f"{self._safe_step()}."
            )

    def close(self) -> None:
        """Waits for a save in progress and ends the background threads."""
        self.check(wait=True)
        self._store.close()

    def latest_step(self) -> int | None:
        """Returns the newest complete step or None; waits for a save in progress."""
        return max(self._steps(), default=None)

    def read_meta(self, step: int | None = None) -> dict:
        """Returns the `meta` of a step, by default the newest that can be read.

        Raises:
          MissingInputError: there is no such step.
          CheckpointError: it cannot be read.
        """
        problems = []
        for candidate in self._candidates(step):
            try:
                return self._load_meta(candidate)
            except DamagedError as error:
                problems.append(f"{self.directory}/{candidate}: {error}")
        raise CheckpointError("\n".join(problems))

    def restore(self, abstract_state: Any, step: int | None = None):
        """Returns (state, meta) of the newest good step, or None if there is none.

        A damaged step is passed over with a warning and, once an older one has been
        read, renamed to `<step>.damaged-<time>`. If all are damaged nothing is
        renamed: the next start must not take the folder for a new run.

        Args:
          abstract_state: the state as `jax.ShapeDtypeStruct` with shardings; any
            mesh will do.
          step: this step and no other.

        Raises:
          CheckpointError: leaves differ in name, shape or dtype (all are listed), or
            no step is good.
          MissingInputError: there is no step `step`.
        """
        if step is None and not self._steps():
            return None
        leaves, meta = self._newest_good(trees.flatten(abstract_state), step)
        self._current = meta["step"]
        return trees.unflatten(abstract_state, leaves), meta

    def restore_params(self, abstract_params: Any) -> tuple[Any, dict]:
        """Returns (params, meta) of the newest good step, whatever the optimizer was.

        Args:
          abstract_params: nested dict of `jax.ShapeDtypeStruct` with shardings, of all
            parameters or of some: others are not read.

        Raises:
          CheckpointError, MissingInputError: as for `restore`.
        """
        abstract = {"params": abstract_params}
        leaves, meta = self._newest_good(trees.flatten(abstract), step=None)
        return trees.unflatten(abstract, leaves)["params"], meta

    def stored_params(self) -> dict:
        """Returns the abstract parameters of the newest step; raises as `read_meta`."""
        prefix = "params/"
        leaves = {
            name.removeprefix(prefix): trees.parse_description(text)
            for name, text in self.read_meta()["leaves"].items()
            if name.startswith(prefix)
        }
        return traverse_util.unflatten_dict(leaves, sep="/")

    def _open(self) -> OrbaxSteps | BucketSteps:
        in_bucket = is_url(self.directory) or is_copied_from_bucket(self.directory)
        steps = BucketSteps if in_bucket else OrbaxSteps
        return steps(self.directory, keep=self._keep, read_only=self._read_only)

    def _steps(self) -> list[int]:
        self.check(wait=True)
        return self._store.all_steps()

    def _candidates(self, step: int | None) -> list[int]:
        """Returns `step` alone, or all steps from the newest. Raises MissingInputError."""
        steps = self._steps()
        if not steps or (step is not None and step not in steps):
            problem = "no checkpoint" + (f" of step {step}" if step is not None else "")
            raise MissingInputError(
                f"{problem} in {self.directory}; there are {steps or 'none'}."
            )
        return [step] if step is not None else steps[::-1]

    @contextlib.contextmanager
    def _failure_reported(self):
        """Logs a failed save as a warning; raises OutputError for the third in a row."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            self._failed_saves += 1
            self._current = None
            self._store.recover()
            count, line = self._failed_saves, first_line(error)
            message = f"{count} checkpoint(s) in a row not written to {self.directory}: {line}"
            if self._failed_saves >= _MAX_FAILED_SAVES:
                raise OutputError(
                    f"{message}\nFree space, or restore access to the bucket, then run "
                    "the same command."
                ) from error
            _log.warning("%s\ntraining continues; %s", message, self._safe_step())

    def _safe_step(self) -> str:
        """Returns which step a run would resume from, for messages."""
        try:
            newest = max(self._store.all_steps(), default=None)
        except OSError:  # the bucket cannot be reached
            return "earlier steps are as they were"
        return "no step is saved" if newest is None else f"step {newest} is safe"

    def _newest_good(self, requested: dict, step: int | None) -> tuple[dict, dict]:
        """Returns the requested leaves, and meta, of `step` or the newest good step."""
        candidates = self._candidates(step)
        requested = trees.with_shardings(requested)
        damaged = {}
        for candidate in candidates:
            try:
                result = self._load(candidate, requested)
            except DamagedError as error:
                damaged[candidate] = str(error)
                _log.warning("checkpoint %d is damaged: %s", candidate, error)
            else:
                self._set_aside(list(damaged))
                return result
        reasons = "\n".join(f"  step {bad}: {why}" for bad, why in damaged.items())
        raise CheckpointError(
            f"no good checkpoint in {self.directory}:\n{reasons}\n"
            "Nothing was renamed. Restore a copy, or start in another workdir."
        )

    def _load(self, step: int, requested: dict) -> tuple[dict, dict]:
        """Returns the requested leaves and meta of a step. Raises DamagedError."""
        meta = self._load_meta(step)
        # Checked before Orbax reads: it would cast dtypes silently, and name no leaf
        # of another shape.
        complete = not all(name.startswith("params/") for name in requested)
        stored = {
            name: text
            for name, text in meta["leaves"].items()
            if complete or name in requested
        }
        trees.require_equal(requested, stored, f"checkpoint {step}")
        with classify_read_errors(", ".join(trees.to_items(requested)), requested):
            leaves = self._store.read(step, requested)
        restored, not_finite = inspect_leaves(leaves)
        wrong = [
            name for name in requested if restored[name] != meta["fingerprints"][name]
        ]
        if wrong:
            raise DamagedError(f"wrong values in {trees.first_names(wrong)}")
        if not_finite:
            raise DamagedError(f"NaN or infinity in {trees.first_names(not_finite)}")
        return leaves, meta

    def _load_meta(self, step: int) -> dict:
        """Returns the verified meta of a step. Raises DamagedError."""
        with classify_read_errors("meta"):
            sealed = self._store.read_meta(step)
            if sealed["digest"] != digest(sealed["meta"]):
                raise ValueError("meta does not have its digest")
            if sealed["meta"]["step"] != step:
                raise ValueError(f"meta belongs to step {sealed['meta']['step']}")
        return sealed["meta"]

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged steps, so that the same steps can be saved again."""
        if self._read_only or not steps:
            return
        self._store.rename({s: f"{s}.damaged-{int(time.time())}" for s in steps})
