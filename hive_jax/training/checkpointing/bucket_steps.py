"""Steps of a run in a bucket (gs://, s3://), written and read by TensorStore.

Orbax can write to gs://, not to s3://. A step is a folder `checkpoints/<step>` of objects: each
leaf a zarr array, of which every process writes its own shards, and `meta.json`, which
comes last: a folder without it is an unfinished save. A copy of such a run in a local
folder is read and resumed in the same format.
"""

import json
import logging
import os

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.experimental.array_serialization.serialization import (
    GlobalAsyncCheckpointManager,
)

from hive_jax.buckets import as_path, bucket_errors, is_url
from hive_jax.errors import CheckpointError, OutputError
from hive_jax.io import list_names, move, remove_folder, require_writable

# Written after all arrays.
_META = "meta.json"
# 17 s in all before a request counts as failed; TensorStore would retry for 15 minutes.
_RETRIES = {"max_retries": 7, "initial_delay": "250ms", "max_delay": "8s"}

_log = logging.getLogger(__name__)


def is_copied_from_bucket(directory: str) -> bool:
    """Returns whether a local folder holds steps that were saved in a bucket."""
    return any(True for _ in as_path(directory).glob(f"*/{_META}"))


class BucketSteps:
    """The steps below a URL; has the methods of `OrbaxSteps`.

    Args:
      directory: gs:// or s3:// URL, or a local copy of one.
      keep: number of newest steps to keep.
      read_only: never write, rename or delete anything.

    Raises:
      OutputError: objects cannot be written there.
    """

    def __init__(self, directory: str, *, keep: int, read_only: bool):
        self._directory, self._keep = as_path(directory), keep
        self._arrays = GlobalAsyncCheckpointManager()
        self._require_own_format()
        # Before the first collective of the run, so before any process saves.
        if not read_only and jax.process_index() == 0:
            require_writable(directory)
            self._remove_unfinished()

    def all_steps(self) -> list[int]:
        """Returns the complete steps, from the oldest."""
        with bucket_errors():
            return sorted(s for s in self._folders() if self._path(s, _META).exists())

    def save(self, step: int, leaves: dict[str, jax.Array], sealed: dict) -> None:
        """Starts saving; returns when the leaves may be donated.

        Args:
          step: training step.
          leaves: arrays by name.
          sealed: JSON value to store beside them.
        """

        def commit() -> None:
            # On process 0, when all processes have written their shards.
            with bucket_errors():
                self._path(step, _META).write_text(json.dumps(sealed))
            try:
                self._remove_old()
            except (OSError, OutputError) as error:  # the step itself is saved
                _log.warning("an old checkpoint is not removed: %s", error)

        specs = [self._spec(step, name) for name in leaves]
        arrays = [*map(jnp.asarray, leaves.values())]  # imported weights are of NumPy
        self._arrays.serialize(arrays, specs, on_commit_callback=commit)

    def poll(self, wait: bool) -> bool:
        """Returns whether the last save is complete, and raises its error if it failed.

        Args:
          wait: wait for a save in progress, instead of returning False.
        """
        if wait:
            self._arrays.wait_until_finished()
        else:
            self._arrays.check_for_errors()
        return wait

    def read_meta(self, step: int) -> dict:
        """Returns what `save` got as `sealed`."""
        with bucket_errors():
            content = self._path(step, _META).read_bytes()
        return json.loads(content)

    def read(self, step: int, leaves: dict[str, jax.ShapeDtypeStruct]) -> dict:
        """Returns arrays by name.

        Args:
          step: a complete step.
          leaves: name -> shape, dtype and sharding.
        """
        arrays = self._arrays.deserialize(
            [leaf.sharding for leaf in leaves.values()],
            [self._spec(step, name) for name in leaves],
        )
        return dict(zip(leaves, arrays, strict=True))

    def rename(self, names: dict[int, str]) -> None:
        """Renames steps, so that the same steps can be saved again.

        Args:
          names: step -> new name of its folder.
        """
        if jax.process_index() == 0:
            for step, name in names.items():
                move(self._directory / str(step), self._directory / name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints_set_aside")

    def recover(self) -> None:
        """Makes the next save possible after a failed one, whose objects the next start
        removes: the bucket may be out of reach now."""
        self._arrays = GlobalAsyncCheckpointManager()

    def close(self) -> None:
        """Waits for a save in progress."""
        self._arrays.wait_until_finished()

    def _spec(self, step: int, name: str) -> dict:
        """Returns the TensorStore spec of a leaf."""
        url = f"{self._directory}/{step}/{name}/"
        return {"driver": "zarr3", "kvstore": _kvstore(url)}

    def _path(self, step: int, name: str):
        return self._directory / str(step) / name

    def _folders(self) -> list[int]:
        """Returns the steps of all folders, complete or not."""
        return [int(name) for name in list_names(self._directory) if name.isdecimal()]

    def _require_own_format(self) -> None:
        """Raises CheckpointError for steps that Orbax wrote: no step would be there."""
        for step in self._folders():
            if self._path(step, "_CHECKPOINT_METADATA").exists():
                raise CheckpointError(
                    f"{self._directory}/{step} was saved in a local folder and copied "
                    "to the bucket; expected steps that were saved there. Copy the run "
                    "to a local folder again, and resume or start from it there"
                )

    def _remove_unfinished(self) -> None:
        """Removes what a killed or failed save has left."""
        complete = self.all_steps()
        for step in self._folders():
            if step not in complete:
                remove_folder(self._directory / str(step))

    def _remove_old(self) -> None:
        """Removes all steps but the newest, each of them as a whole first."""
        for step in self.all_steps()[: -self._keep]:
            with bucket_errors():
                self._path(step, _META).unlink(missing_ok=True)
            remove_folder(self._directory / str(step))


def _kvstore(url: str) -> dict:
    """Returns the TensorStore key-value store of a URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    if not is_url(url):
        return {"driver": "file", "path": url}
    if scheme == "gs":
        store = {"driver": "gcs", "gcs_request_retries": _RETRIES}
    else:
        store = {"driver": "s3", "s3_request_retries": _RETRIES}
        # Variables of the AWS clients, which TensorStore does not read.
        endpoint = _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        if endpoint:
            region = _environment("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"
            store |= {"endpoint": endpoint, "aws_region": region}
    return store | {"bucket": bucket, "path": path}


def _environment(*names: str) -> str | None:
    """Returns the first of these environment variables that is set."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
