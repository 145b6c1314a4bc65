"""Which sample stands where, and texts of about the same length side by side."""

import itertools

import numpy as np
import pytest

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sample_encoding import encode_sample
from hive_jax.data.sampler import LengthBucketSampler, ShuffledSampler, count_all_tokens
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.data.types import Sample, Segment

BUCKETS, MOST = (32, 48, 64), 80
EPOCHS = 5


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(10, 100, 1003)


def by_length(tokens, seed=0, batch_size=16):
    return LengthBucketSampler(tokens, seed, batch_size=batch_size, buckets=BUCKETS)


@pytest.mark.parametrize("size", [1, 5, 16, 37, 1003])
@pytest.mark.parametrize("batch_size", [1, 8, 16])
def test_each_epoch_has_each_sample_once(tokens, size, batch_size):
    for order in (
        ShuffledSampler(size),
        ShuffledSampler(size, seed=3),
        by_length(tokens[:size], 3, batch_size),
    ):
        for epoch in range(EPOCHS):
            places = range(epoch * size, (epoch + 1) * size)
            assert sorted(map(order.index, places)) == [*range(size)]


def test_any_position_can_be_asked_for_first(tokens):
    in_turn = by_length(tokens)
    wanted = [in_turn.index(position) for position in range(EPOCHS * 1003)]
    for position in np.random.default_rng(0).integers(0, len(wanted), 20):
        assert by_length(tokens).index(int(position)) == wanted[position]


def batches(order, batch_size=16):
    """The samples of each step of some epochs, and what they are padded to."""
    for first in range(0, EPOCHS * order.size - batch_size, batch_size):
        places = range(first, first + batch_size)
        yield [*map(order.index, places)], order.padded_length(first, MOST)


def test_a_batch_is_padded_to_the_bucket_of_its_longest(tokens):
    for samples, padded in batches(by_length(tokens)):
        longest = min(tokens[samples].max(), MOST)
        assert padded == next(n for n in (*BUCKETS, MOST) if longest <= n)


def test_all_parts_of_a_batch_are_padded_alike(tokens):
    order = by_length(tokens)
    for first in range(0, 3000, 16):
        padded = {order.padded_length(first + row, MOST) for row in range(16)}
        assert len(padded) == 1


def test_hardly_a_batch_is_longer_than_its_samples_need(tokens):
    """Only where one bucket ends and the next begins: at most three an epoch."""
    mixed = 0
    for samples, _ in batches(by_length(tokens)):
        mixed += len({*np.searchsorted(BUCKETS, tokens[samples])}) > 1
    assert mixed <= 3 * EPOCHS
    padded = np.mean([padded for _, padded in batches(by_length(tokens))])
    assert padded < 0.8 * MOST


def test_lengths_come_in_a_random_order(tokens):
    padded = [padded for _, padded in batches(by_length(tokens))]
    changes = np.mean([a != b for a, b in itertools.pairwise(padded)])
    assert changes > 0.5
    assert padded != [padded for _, padded in batches(by_length(tokens, seed=1))]


def test_samples_of_a_batch_change_from_epoch_to_epoch(tokens):
    seen = [frozenset(samples) for samples, _ in batches(by_length(tokens))]
    assert len(set(seen)) == len(seen)


class Words:
    """Sample i has i words; every seventh cannot be read."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        if index % 7 == 6:
            raise InvalidSample("damaged", f"words {index}", "torn")
        return Sample(None, (Segment(" cube" * index), Segment(" cube")))


@pytest.mark.parametrize("threads", [1, 3])
def test_texts_are_counted_with_what_comes_before_them(monkeypatch, threads):
    monkeypatch.setattr("hive_jax.data.sampler._CHUNK", 8)
    tokenizer, done = load_tokenizer("builtin:tabletop"), []
    words = Words()
    got = count_all_tokens(words, tokenizer, 300, threads, done.append)
    for index, count in enumerate(got):
        if index % 7 == 6:
            assert count == 0
        else:  # it fits, and would not with one token less
            rows = [encode_sample(words[index], tokenizer, n) for n in (300, count)]
            assert rows[0]["target"].sum() == rows[1]["target"].sum() == count - 1
    assert sum(done) == 50
