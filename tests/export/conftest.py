"""Tiny runs of every kind, for the tests of exports."""

import pytest
from helpers.exported_runs import run_config
from helpers.random_runs import save_random


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(kind) -> workdir with random weights, nowhere near zero."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}

    def make(kind: str) -> str:
        if kind not in made:
            made[kind] = str(folder / kind)
            save_random(run_config(kind), made[kind])
        return made[kind]

    return make
