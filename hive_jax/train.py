"""Trains one stage: python -m hive_jax.train --config configs/stage1.py

Flags: --workdir, --allow_config_change, --distributed and its kin, and
--config.KEY=VALUE for every key of the config.
"""

from absl import flags

from hive_jax.config import RunConfig, cli
from hive_jax.training import runtime, trainer

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default: workdir/NAME of the config."
)
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Continue a run although its config changed."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Join the processes of a job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0.")


def main(config: RunConfig) -> int:
    """Joins the job, if there is one, and trains; returns the exit code."""
    runtime.join_job(
        _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    with runtime.abort_job_on_error():
        runtime.enable_compilation_cache()
        return trainer.train(
            config, _WORKDIR.value, allow_config_change=_ALLOW_CONFIG_CHANGE.value
        )


if __name__ == "__main__":
    cli.run(main)
