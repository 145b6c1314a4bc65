"""Steps of a run in a local folder, saved and restored by Orbax.

The only file that knows Orbax. A step is a folder `checkpoints/<step>` that appears
under its name only when it is complete, with three items: `params`, `optimizer` (step
and opt_state) and `meta`.
"""

import contextlib
import os

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from hive_jax.io import require_writable
from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.orbax_output import filter_orbax_output

filter_orbax_output()


class OrbaxSteps:
    """The steps in a local folder; errors of Orbax are raised as they are.

    Args:
      directory: absolute path; created unless `read_only`.
      keep: number of newest steps to keep.
      read_only: never write, rename or delete anything.

    Raises:
      OutputError: the folder cannot be written.
    """

    def __init__(self, directory: str, *, keep: int, read_only: bool):
        self._directory = directory
        if read_only:
            # Spelled out because the manager warns about each option it turns off.
            self._options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            require_writable(directory)
            self._options = ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True
            )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._directory, options=self._options)

    def all_steps(self) -> list[int]:
        """Returns the complete steps, from the oldest."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, leaves: dict[str, jax.Array], sealed: dict) -> None:
        """Starts saving; returns when the leaves may be donated.

        Args:
          step: training step.
          leaves: arrays by name.
          sealed: JSON value to store beside them.
        """
        items = {
            name: ocp.args.PyTreeSave(item)
            for name, item in trees.to_items(leaves).items()
        }
        arguments = ocp.args.Composite(**items, meta=ocp.args.JsonSave(sealed))
        # force: whether to save is the trainer's decision, not an interval of Orbax.
        self._manager.save(step, args=arguments, force=True)

    def poll(self, wait: bool) -> bool:
        """Returns whether the last save is complete, and raises its error if it failed.

        Args:
          wait: wait for a save in progress, instead of returning False.
        """
        if not wait and self._manager.is_saving_in_progress():
            return False
        self._manager.wait_until_finished()
        return True

    def read_meta(self, step: int) -> dict:
        """Returns what `save` got as `sealed`."""
        arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=arguments)["meta"]

    def read(self, step: int, leaves: dict[str, jax.ShapeDtypeStruct]) -> dict:
        """Returns arrays by name.

        Args:
          step: a complete step.
          leaves: name -> shape, dtype and sharding.
        """
        arguments = {
            name: ocp.args.PyTreeRestore(
                item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            )
            for name, item in trees.to_items(leaves).items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        return trees.from_items({name: restored[name] for name in arguments})

    def rename(self, names: dict[int, str]) -> None:
        """Renames steps, so that the same steps can be saved again.

        Args:
          names: step -> new name of its folder.
        """
        if jax.process_index() == 0:
            for step, name in names.items():
                path = os.path.join(self._directory, str(step))
                os.rename(path, os.path.join(self._directory, name))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints_set_aside")
        self._manager.reload()

    def recover(self) -> None:
        """Makes the next save possible after a failed one."""
        # Orbax lists the failed step and forgets older ones. A new manager also removes
        # the files of the failed save.
        with contextlib.suppress(Exception):
            self.close()
        self._manager = self._open()

    def close(self) -> None:
        """Ends the background threads."""
        self._manager.close()
