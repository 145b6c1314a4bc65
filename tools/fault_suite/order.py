"""Resumes the loader at any step on any number of hosts; its batches must be the same."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from hive_jax.config import DataConfig
from hive_jax.data.invalid import InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import LengthBucketSampler, ShuffledSampler, count_all_tokens
from hive_jax.data.sources.registry import make_source
from hive_jax.data.tokenizer import load_tokenizer
from tools.fault_suite.figure import Figure

_SIZE, _BATCH, _NUM_TOKENS, _IMAGE_SIZE = 37, 8, 24, 16
_STEPS = 2 * _SIZE  # 16 epochs
_HOSTS, _THREADS = (1, 2, 4, 8), (1, 2, 5)


class RowsOfOneHost:
    """The sharding of a batch as one host of several sees it.

    Args:
      *bounds: (start, stop) of the rows of each of its devices.
    """

    def __init__(self, *bounds: tuple[int, int]):
        self.indices = [(slice(start, stop),) for start, stop in bounds]

    def addressable_devices_indices_map(self, shape: Sequence[int]) -> dict:
        return dict(enumerate(self.indices))


@contextlib.contextmanager
def hosts_in_one_process() -> Iterator[None]:
    """Context manager in which a loader with `RowsOfOneHost` returns its rows alone."""

    def make(shape, sharding, rows):
        return np.concatenate([rows(index) for index in sharding.indices])

    with mock.patch.object(jax, "make_array_from_callback", make):
        yield


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Reads single batches from random steps, on random numbers of hosts and threads.

    Args:
      count: resumes.
      folder: not used.
      cache: not used.
    """
    rng, failures = np.random.default_rng(0), []
    variants = [
        (buckets, augment) for buckets in (False, True) for augment in (None, 0)
    ]
    with hosts_in_one_process():
        expected = {}
        for variant in variants:
            sampler = _sampler(variant[0])
            failures += _not_permutations(sampler)
            expected[variant] = [*_loader(variant).batches(0, _STEPS)]
        for number in range(count):
            variant = variants[number % len(variants)]
            step, hosts = int(rng.integers(_STEPS)), int(rng.choice(_HOSTS))
            threads = int(rng.choice(_THREADS))
            parts = [
                next(_loader(variant, host, hosts, threads).batches(step, step + 1))
                for host in range(hosts)
            ]
            batch = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
            equal = jax.tree.map(np.array_equal, batch, expected[variant][step])
            if not all(jax.tree.leaves(equal)):
                failures.append(f"step {step}, {hosts} hosts, {threads} threads")
    seen = (
        f"{', '.join(map(str, _HOSTS))} hosts, plain and by length, with and without "
        f"augmentation: {len(failures)} different"
    )
    return Figure(count, seen, failures)


@functools.cache
def _source():
    data = DataConfig(
        source=f"tabletop,take=first:{_SIZE}", tokenizer="builtin:tabletop"
    )
    return make_source(data, "train", image_size=_IMAGE_SIZE, with_image=True)


@functools.cache
def _tokenizer():
    return load_tokenizer("builtin:tabletop")


@functools.cache
def _sampler(by_length: bool) -> ShuffledSampler:
    if not by_length:
        return ShuffledSampler(len(_source()), 0)
    tokens = count_all_tokens(
        _source(), _tokenizer(), _NUM_TOKENS, 1, lambda count: None
    )
    return LengthBucketSampler(tokens, 0, batch_size=_BATCH, buckets=(12, 16))


def _not_permutations(sampler: ShuffledSampler) -> list[str]:
    """Returns a line for each epoch that has not every sample once."""
    epochs = [
        sorted(sampler.index(epoch * _SIZE + i) for i in range(_SIZE))
        for epoch in range(_STEPS * _BATCH // _SIZE)
    ]
    return [
        f"epoch {number}: {epoch}"
        for number, epoch in enumerate(epochs)
        if epoch != [*range(_SIZE)]
    ]


def _loader(
    variant: tuple[bool, int | None], host: int = 0, hosts: int = 1, threads: int = 1
) -> Loader:
    by_length, augment_seed = variant
    rows = _BATCH // hosts
    return Loader(
        _source(),
        _tokenizer(),
        sampler=_sampler(by_length),
        batch_size=_BATCH,
        num_tokens=_NUM_TOKENS,
        image_size=_IMAGE_SIZE,
        preprocessing="hf_bicubic",
        invalid=InvalidSampleLog("train", _SIZE, 0.5),
        sharding=RowsOfOneHost((host * rows, (host + 1) * rows)),
        threads=threads,
        augment_seed=augment_seed,
    )
