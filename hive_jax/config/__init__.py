"""Configs: dataclasses of a run, and their conversion to and from dicts."""

from hive_jax.config.probe_schema import ProbeConfig
from hive_jax.config.schema import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    Rule,
    RunConfig,
    Source,
)
from hive_jax.config.serialization import (
    RESUMABLE_KEYS,
    as_run_config,
    differences,
    from_dict,
    nearest,
    to_dict,
)

__all__ = [
    "RESUMABLE_KEYS",
    "DataConfig",
    "MeshConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "Rule",
    "RunConfig",
    "Source",
    "as_run_config",
    "differences",
    "from_dict",
    "nearest",
    "to_dict",
]
