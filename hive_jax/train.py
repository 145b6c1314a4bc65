"""Trains one stage. The same command resumes a run that was stopped."""

import sys
import time

from hive_jax.console import report_errors
from hive_jax.training.preemption import ExitOnSignal

_EXAMPLES = """examples:
  python -m hive_jax.train --config configs/stage1.py
  python -m hive_jax.train --config stage2:fusion=cascaded --workdir /tmp/run \\
      --config.total_steps=50 --config.batch_size=32
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Joins the job, if there is one, and trains; returns the exit code."""
    with ExitOnSignal() as exits:
        return _train(arguments, exits)


def _train(arguments: list[str] | None, exits: ExitOnSignal) -> int:
    began = time.monotonic()
    # Here and below, because imports take time, in which a signal may arrive.
    from hive_jax.config import cli

    parser = cli.config_parser("hive_jax.train", __doc__, _EXAMPLES)
    parser.add_argument(
        "--workdir", help="folder of the run (default: workdir/NAME of the config)"
    )
    parser.add_argument(
        "--allow_config_change",
        action="store_true",
        help="resume a run although its config changed (default: refuse)",
    )
    parser.add_argument(
        "--distributed",
        choices=("auto", "on", "off"),
        default="auto",
        help="join the processes of a job (default: auto, on TPU hosts and under srun)",
    )
    parser.add_argument("--coordinator_address", help="host:port of process 0")
    parser.add_argument("--num_processes", type=int, help="processes of the job")
    parser.add_argument("--process_id", type=int, help="this process, from 0")
    options, config = cli.parse(parser, arguments)
    # After parsing, because importing JAX would delay --help and errors of the config.
    from hive_jax.training import runtime, trainer, watchdog
    from hive_jax.training.compilation_cache import enable_compilation_cache

    watchdog.begin_timing(began)
    watchdog.enter("the config")
    # Flags are named after the arguments, so that the errors fit both.
    runtime.join_job(
        options.distributed,
        options.coordinator_address,
        options.num_processes,
        options.process_id,
    )
    exits.joined_job()
    watchdog.connect(options.coordinator_address)
    with watchdog.end_together():
        # After joining: it asks JAX for the platform, which initializes the backend.
        enable_compilation_cache()
        return trainer.train(
            config, options.workdir, allow_config_change=options.allow_config_change
        )


if __name__ == "__main__":
    sys.exit(main())
