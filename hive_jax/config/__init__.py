"""What a run is: the schema, its trees of dicts, and its checks."""

from hive_jax.config.schema import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    Rule,
    RunConfig,
)
from hive_jax.config.tree import HARMLESS, differences, from_dict, nearest, to_dict

__all__ = [
    "HARMLESS",
    "DataConfig",
    "MeshConfig",
    "OptimizerConfig",
    "Rule",
    "RunConfig",
    "differences",
    "from_dict",
    "nearest",
    "to_dict",
]
