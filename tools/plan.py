"""Plans a run: what it trains, and on a machine that need not be here, what it takes.

python tools/plan.py --config configs/stage3.py:paper
python tools/plan.py --config configs/stage3.py:paper --topology v5e:4x4 --config.mesh.fsdp=16
python tools/plan.py --config configs/stage3.py:paper --topology v5e:4x4 --config.mesh.fsdp=16 --table --out pod.json

Neither data nor weights nor memory for them are needed. With --topology the train step
itself is compiled: for a TPU slice by libtpu, for cpu:8 on that many fake devices, for
gpu on those of this machine.
"""

import importlib
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from hive_jax.config import MeshConfig, RunConfig, cli, from_dict
from hive_jax.errors import ConfigError
from hive_jax.planning import comparison, text, topology
from hive_jax.planning.plan import make_plan
from hive_jax.training import sharding
from hive_jax.training.program import Program
from hive_jax.training.resolve import apply_image_size, resolve_config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


_TOPOLOGY = flags.DEFINE_string(
    "topology", "", f"Machine to compile for: {topology.EXAMPLES}."
)
_OUT = flags.DEFINE_string("out", "", "JSON file for all numbers.")
_TABLE = flags.DEFINE_bool(
    "table", False, "Stages 1 to 3, hive and self_attention, as a Markdown table."
)


def plan(config: RunConfig) -> str:
    """Parameters of each part, trainable or frozen, with the peak learning rate."""
    config = _complete(config)
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    table = Program(config, mesh).parameter_table
    images = config.total_steps * config.batch_size
    return f"{table}\n{config.total_steps:,} steps, {images:,} images"


def stages() -> list[RunConfig]:
    """The config of each stage and fusion, with the arguments and overrides given."""
    chosen = flags.FLAGS["config"]
    path, _, arguments = config_flags.get_config_filename(chosen).partition(":")
    if Path(path).stem not in ("stage1", "stage2", "stage3"):
        raise ConfigError(f"--table is of configs/stage1.py to stage3.py; got {path}")
    kept = [a for a in arguments.split(",") if a and not a.startswith("fusion=")]
    configs = []
    for number in (1, 2, 3):
        module = importlib.import_module(f"configs.stage{number}")
        for fusion in ("hive", "self_attention"):
            tree = module.get_config(",".join([*kept, f"fusion={fusion}"]))
            tree.update_from_flattened_dict(config_flags.get_override_values(chosen))
            configs.append(from_dict(tree.to_dict()))
    return configs


def main(config: RunConfig) -> int:
    if not _TOPOLOGY.value:
        if _TABLE.value or _OUT.value:
            raise ConfigError("--table and --out need --topology, such as v5e:4x4")
        print(plan(config))
        return 0
    if _OUT.value:
        comparison.require_writable(_OUT.value)
    machine = topology.find(_TOPOLOGY.value)
    if not _TABLE.value:
        made = make_plan(_complete(config), machine)
        print(text.describe(made))
        if _OUT.value:
            comparison.write(made.to_dict(), _OUT.value)
        return 0
    configs = [_complete(stage) for stage in stages()]
    made = comparison.plan_all(configs, machine, _OUT.value)
    plans = list(tqdm(made, total=len(configs), unit="plan", desc=machine.name))
    print(comparison.markdown(plans))
    return 0


def _complete(config: RunConfig) -> RunConfig:
    """With the architectures of the initial weights where it has none."""
    if config.model.encoder is None or config.model.decoder is None:
        return resolve_config(config).config
    return apply_image_size(config)


if __name__ == "__main__":
    cli.run(main)
