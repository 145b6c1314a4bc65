"""Says what a config trains, without data, weights or memory for them.

python tools/plan.py --config configs/stage3.py:paper
"""

import sys
from pathlib import Path

from flax.traverse_util import flatten_dict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax import command
from hive_jax.config import MeshConfig, RunConfig
from hive_jax.data.batch import Batch
from hive_jax.training import optimizer, report, sharding
from hive_jax.training.initial import abstract_params
from hive_jax.training.objectives import build_model, names_under_all_fusions
from hive_jax.training.origin import complete


def plan(config: RunConfig) -> str:
    """Parameters of each part, trainable or frozen, with the peak learning rate."""
    if 0 in (config.model.encoder.width, config.model.decoder.width):
        config = complete(config, workdir="")
    model = build_model(config)
    image_size = config.model.encoder.image_size
    batch = Batch.spec(1, config.data.num_tokens, image_size)
    abstract = abstract_params(model, batch, sharding.make_mesh(MeshConfig()))
    shapes = flatten_dict(abstract, sep="/")
    assigned = optimizer.assign_rules(
        shapes, config.rules, lambda: names_under_all_fusions(config, batch)
    )
    table = report.parameter_table(shapes, assigned, config.optimizer.peak_lr)
    images = config.total_steps * config.batch_size
    return f"{table}\n{config.total_steps:,} steps, {images:,} images"


def main(config: RunConfig) -> int:
    print(plan(config))
    return 0


if __name__ == "__main__":
    command.run(main)
