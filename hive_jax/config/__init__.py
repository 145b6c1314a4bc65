"""What a run is: the schema, its trees of dicts, and its checks."""

from hive_jax.config.checks import check
from hive_jax.config.schema import (
    DECODER_OF_WEIGHTS,
    ENCODER_OF_WEIGHTS,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ProbeConfig,
    Rule,
    RunConfig,
    Source,
)
from hive_jax.config.tree import HARMLESS, differences, from_dict, nearest, to_dict

__all__ = [
    "DECODER_OF_WEIGHTS",
    "ENCODER_OF_WEIGHTS",
    "HARMLESS",
    "DataConfig",
    "MeshConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "Rule",
    "RunConfig",
    "Source",
    "check",
    "differences",
    "from_dict",
    "nearest",
    "to_dict",
]
