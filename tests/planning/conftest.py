"""A mesh of 8 devices."""

import pytest

from hive_jax.config import MeshConfig
from hive_jax.training import sharding


@pytest.fixture(scope="session")
def mesh():
    return sharding.make_mesh(MeshConfig(1, 8, 1))
