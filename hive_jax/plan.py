"""Plans a run: trainable parameters, and the cost of a train step on any machine.

Needs neither data nor weights. With --topology the train step is compiled ahead of
time: for a TPU slice by libtpu, for l4:1, a GPU, by XLA's CPU backend, for cpu:8 on eight
simulated devices, for gpu on the GPUs of this machine.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from hive_jax.config import MeshConfig, RunConfig, cli
from hive_jax.console import report_errors, show
from hive_jax.errors import ConfigError
from hive_jax.io import write_json
from hive_jax.planning import TOPOLOGY_EXAMPLES

if TYPE_CHECKING:
    from hive_jax.planning.hardware import Topology

_EXAMPLES = """examples:
  python -m hive_jax.plan --config configs/stage3.py:paper
  python -m hive_jax.plan --config configs/stage3.py:paper --topology v5e:4x4 \\
      --config.mesh.fsdp=16 --table --out pod.json
"""


def parameter_report(config: RunConfig) -> str:
    """Returns a text table of parameter groups: size, trainable or frozen, peak rate.

    Args:
      config: of the run; architectures of None are taken from its initial weights.
    """
    # Here and below, because importing JAX would delay --help.
    import jax

    from hive_jax.training import sharding
    from hive_jax.training.train_step import Program

    config = _complete(config)
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    table = Program(config, mesh).parameter_table
    images = config.total_steps * config.batch_size
    return f"{table}\n{config.total_steps:,} steps, {images:,} images"


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Prints the plan; returns the exit code."""
    parser = cli.config_parser("hive_jax.plan", __doc__, _EXAMPLES)
    parser.add_argument(
        "--topology",
        help=f"machine to compile for: {TOPOLOGY_EXAMPLES} (default: compile nothing)",
    )
    parser.add_argument("--out", help="JSON file for all numbers (default: none)")
    parser.add_argument(
        "--table",
        action="store_true",
        help="stages 1 to 3, hive and self_attention, as a Markdown table",
    )
    # Not cli.parse: --table reads several config files with the same overrides.
    options, overrides = parser.parse_known_args(arguments)
    config = cli.read_config(options.config, overrides)
    if not options.topology:
        if options.table or options.out:
            raise ConfigError("--table and --out need --topology, such as v5e:4x4")
        show(parameter_report(config))
        return 0
    from hive_jax.planning import hardware, report
    from hive_jax.planning.plan import make_plan

    if options.out:  # before minutes of compilation
        report.require_writable(options.out)
    machine = hardware.find_topology(options.topology)
    if options.table:
        _print_table(options, overrides, machine)
        return 0
    plan = make_plan(_complete(config), machine)
    show(report.describe(plan))
    if options.out:
        write_json(options.out, report.to_dict(plan))
    return 0


def _print_table(
    options: argparse.Namespace, overrides: list[str], machine: "Topology"
) -> None:
    """Prints the Markdown table of the stages, and writes it to --out."""
    from hive_jax.planning import report

    configs = [_complete(config) for config in _stages(options.config, overrides)]
    planned = report.plan_all(configs, machine, options.out)
    plans = list(tqdm(planned, total=len(configs), unit="plan", desc=machine.name))
    show(report.markdown(plans))


def _stages(config_file: str, overrides: list[str]) -> list[RunConfig]:
    """Returns the config of each stage and fusion, with the same overrides."""
    path, _, arguments = config_file.partition(":")
    if Path(path).stem not in ("stage1", "stage2", "stage3"):
        raise ConfigError(f"--table is of configs/stage1.py to stage3.py; got {path}")
    shared = [a for a in arguments.split(",") if a and not a.startswith("fusion=")]
    configs = []
    for number in (1, 2, 3):
        stage = Path(path).with_name(f"stage{number}.py")
        for fusion in ("hive", "self_attention"):
            file = f"{stage}:{','.join([*shared, f'fusion={fusion}'])}"
            configs.append(cli.read_config(file, overrides))
    return configs


def _complete(config: RunConfig) -> RunConfig:
    """Returns the config with both architectures, from the initial weights if needed."""
    from hive_jax.training.resolve import apply_image_size, resolve_config

    if config.model.encoder is None or config.model.decoder is None:
        return resolve_config(config).config
    return apply_image_size(config)


if __name__ == "__main__":
    sys.exit(main())
