"""Scenes for the tests of the built-in dataset."""

import pytest

from hive_jax.data.tabletop.scene import Scene, scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene("train", 0, index) for index in range(1500)]
