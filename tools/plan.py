"""Says what a config trains, without data, weights or memory for them.

python tools/plan.py --config configs/stage3.py:paper
"""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax import command
from hive_jax.config import MeshConfig, RunConfig
from hive_jax.training import sharding
from hive_jax.training.origin import complete
from hive_jax.training.program import Program


def plan(config: RunConfig) -> str:
    """Parameters of each part, trainable or frozen, with the peak learning rate."""
    if 0 in (config.model.encoder.width, config.model.decoder.width):
        config = complete(config, workdir="")
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    table = Program(config, mesh).parameter_table
    images = config.total_steps * config.batch_size
    return f"{table}\n{config.total_steps:,} steps, {images:,} images"


def main(config: RunConfig) -> int:
    print(plan(config))
    return 0


if __name__ == "__main__":
    command.run(main)
