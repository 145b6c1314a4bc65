"""Garbage collection within the test that causes it."""

import gc

import pytest


@pytest.fixture(autouse=True)
def collect_abandoned_coroutines():
    yield
    gc.collect()
