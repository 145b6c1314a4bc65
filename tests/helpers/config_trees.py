"""The config with all its towers as a tree, and changes of it."""

import pytest

from hive_jax.config import from_dict, to_dict
from hive_jax.errors import ConfigError
from tools.fault_suite.config_fuzz import FULL, get, paths


def groups(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield (*prefix, key)
            yield from groups(value, (*prefix, key))


LEAVES = sorted(paths(to_dict(FULL)))
GROUPS = sorted(groups(to_dict(FULL)))
by_leaf = pytest.mark.parametrize("path", LEAVES, ids=".".join)


def changed(path, value, tree=None):
    """The default tree with another value at `path`."""
    tree = to_dict(FULL) if tree is None else tree
    get(tree, path[:-1])[path[-1]] = value
    return tree


def refused(tree):
    with pytest.raises(ConfigError) as caught:
        from_dict(tree)
    return str(caught.value)
