"""Machines: names, links and data sheets."""

import dataclasses
import importlib.util
import os

import jax
import numpy as np
import pytest

from hive_jax.errors import ConfigError, UnavailableError
from hive_jax.planning.hardware import CHIPS, find_topology, slice_shapes


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("v9:4x4", r"expected a chip \(v4, v5e, v5p, v6e\)"),
        ("cpu:none", "expected a chip"),
        ("l4", r"or a GPU \(l4, a100, h100, h200\) and their number, such as .* l4:1"),
        ("v5e", "expected the chips along each axis after the colon, such as v5e:4x4"),
        ("v5e:4by4", "expected the chips along each axis"),
        ("v5e:4x4x4", "slices of v5e have 2 axes of 1 to 16 chips"),
        ("v5p:4x4", "slices of v5p have 3 axes"),
        ("cpu:4096", "already started with 8 CPU devices"),
    ],
)
def test_names_that_are_no_machine(name, wanted, monkeypatch):
    jax.devices()  # starts JAX, with the 8 devices of the tests
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    with pytest.raises(ConfigError, match=f"topology is '{name}'.*{wanted}"):
        find_topology(name)


def test_machines_that_are_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install libtpu") as error:
        find_topology("v5e:4x4")
    assert error.value.exit_code == 69
    with pytest.raises(UnavailableError, match="finds no GPU here"):
        find_topology("gpu")


def test_links_of_a_slice():
    v5e, v5p = CHIPS["v5e"], CHIPS["v5p"]
    assert [v5e.links(shape) for shape in [(1, 1), (4, 4), (8, 16), (16, 16)]] == [
        0,
        2,
        3,
        4,
    ]
    assert v5p.links((2, 2, 2)) == 3 and v5p.links((4, 4, 4)) == 6
    assert v5e.ici_bandwidth((4, 4)) == 90e9 and v5e.ici_bandwidth((1, 1)) is None
    assert (4, 4) in slice_shapes(v5e) and (2, 2, 2) in slice_shapes(v5p)


def test_a_named_gpu_is_planned_without_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    l4 = find_topology("l4:1")
    assert len(l4.devices) == 1 and l4.devices[0].platform == "cpu"
    # Three quarters of 24 GB, JAX's default.
    assert 16 < l4.chip.usable_bytes / 2**30 < 18
    assert l4.ici_bandwidth is None


def test_every_chip_is_described():
    for name, chip in CHIPS.items():
        values = dataclasses.asdict(chip)
        assert values.pop("name") == name and values.pop("config") in ("", "megacore")
        assert all(np.asarray(value) > 0 for value in values.values())
