"""Trains one stage: python -m hive_jax.train --config configs/stage1.py

Flags: --workdir, --allow_config_change, --distributed and its kin, and
--config.KEY=VALUE for every key of the config.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from hive_jax.config import from_dict
from hive_jax.errors import ConfigError, HiveError

# Config files import each other as `configs.NAME`, wherever the command is run.
sys.path.append(str(Path(__file__).resolve().parent.parent))

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with ':arguments' for its variants.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; default: workdir/NAME of the config."
)
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Go on with a run although its config changed."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Join the processes of a job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0.")


def main(arguments: list[str]) -> int:
    """Runs the command; errors of the user's are messages with their exit code."""
    try:
        return _main(arguments)
    except HiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    if len(arguments) > 1:
        raise ConfigError(
            f"unexpected arguments {' '.join(arguments[1:])}; overrides are written "
            f"--config.KEY=VALUE"
        )
    config = from_dict(_CONFIG.value.to_dict())
    from hive_jax.training import initial, sharding, trainer

    sharding.initialize_distributed(
        _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    workdir = _WORKDIR.value or initial.default_workdir(
        config.name, config.model.fusion
    )
    return trainer.train(
        config, workdir, allow_config_change=_ALLOW_CONFIG_CHANGE.value
    )


def run() -> None:
    """Entry point."""
    flags.mark_flag_as_required("config")
    app.run(main)


if __name__ == "__main__":
    run()
