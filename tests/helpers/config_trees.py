"""The config with all its towers as a tree, and changes of it."""

import pytest

from hive_jax.config import (
    RunConfig,
    from_dict,
    to_dict,
)
from hive_jax.errors import ConfigError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig


def paths(tree, prefix=()):
    """(key, ..., key) of every value that is not a group."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def groups(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield (*prefix, key)
            yield from groups(value, (*prefix, key))


# All towers are given, so that their keys are there.
FULL = RunConfig(model=HiveConfig(SiglipConfig(), DecoderConfig()))
LEAVES = sorted(paths(to_dict(FULL)))
GROUPS = sorted(groups(to_dict(FULL)))
by_leaf = pytest.mark.parametrize("path", LEAVES, ids=".".join)


def get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def changed(path, value, tree=None):
    """The default tree with another value at `path`."""
    tree = to_dict(FULL) if tree is None else tree
    get(tree, path[:-1])[path[-1]] = value
    return tree


def refused(tree):
    with pytest.raises(ConfigError) as caught:
        from_dict(tree)
    return str(caught.value)
