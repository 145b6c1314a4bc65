"""Subsets of a dataset, and mixtures of several."""

import pytest
from helpers.sources import opened_split

from hive_jax.data.sources.base import largest_remainder, normalize_weights
from hive_jax.errors import ConfigError, DataError


def numbers(source):
    """The records that a source's samples are of."""
    samples = (source[i] for i in range(len(source)))
    return [int(s.segments[0].text.split()[-1]) for s in samples]


def test_parts_of_a_set(sources):
    one = sources["zip"]
    assert numbers(opened_split(f"{one},take=first:6")) == [1, 2, 4, 5]
    assert numbers(opened_split(f"{one},take=first:50%", "validation")) == [0, 2]
    chosen = numbers(opened_split(f"{one},take=random:8"))
    assert len(chosen) == 6 and chosen == sorted(set(chosen))
    assert numbers(opened_split(f"{one},take=random:8")) == chosen
    assert numbers(opened_split(f"{one},take=random:8", seed=3)) != chosen
    fingerprints = {
        opened_split(source).fingerprint
        for source in (one, f"{one},take=first:9", f"{one},take=random:9")
    }
    assert len(fingerprints) == 3
    with pytest.raises(DataError, match="there are 10 samples"):
        opened_split(f"{one},take=first:11")
    for wrong in ("last:3", "first", "first:0", "first:x", "random:-1", "first:nan%"):
        with pytest.raises(ConfigError, match="expected first:N or random:N"):
            opened_split(f"{one},take={wrong}")


def test_a_mixture_has_every_sample_of_its_parts(sources):
    first, second = f"{sources['zip']},take=first:4", f"{sources['lines']}"
    mixed = opened_split(f"{first} + {second}")
    assert numbers(mixed) == [*range(1, 4), *range(1, 10)]
    assert "chat.jsonl, record 5" in mixed.describe(7)
    train_validation_split = opened_split(f"{first} + {second}", "validation")
    assert numbers(train_validation_split) == [0, 0]
    with pytest.raises(IndexError):
        mixed[12]


def test_weights_are_shares_of_the_samples(sources):
    first, second = f"{sources['zip']},take=first:4", f"{sources['lines']}"
    mixed = opened_split(f"3*{first} + 1*{second}")  # 3 and 9 records are not held out
    assert numbers(mixed) == [1, 2, 3] * 9 + [*range(1, 10)]
    assert opened_split(f"1*{first} + 3*{second}").fingerprint != mixed.fingerprint


@pytest.mark.parametrize("weights", [("1e-9", "1"), ("1e-9", "1e9"), ("1", "1e9")])
def test_a_mixture_of_nothing_but_repetition(sources, weights):
    mixed = " + ".join(f"{weight}*{sources['zip']}" for weight in weights)
    with pytest.raises(ConfigError, match="has 9 samples; for them .* there are 18"):
        opened_split(mixed)
    assert len(opened_split(mixed, "validation")) == 2


@pytest.mark.parametrize(
    ("total", "weights", "counts"),
    [
        (512, [1, 1, 1], [171, 171, 170]),
        (64, [0.9, 0.1], [58, 6]),
        (7, [1e6, 1, 1], [5, 1, 1]),
        (10, [3, 3, 3, 1], [3, 3, 3, 1]),
        (3, [1, 1, 1e9], [1, 1, 1]),
        (100, [1e308, 1e308, 5e-324], [50, 49, 1]),
        (9, [2.5], [9]),
    ],
)
def test_what_is_held_out_is_shared_to_the_last(total, weights, counts):
    shares = normalize_weights(weights)
    assert sum(shares) == pytest.approx(1)
    assert largest_remainder(total, shares) == counts


def test_fewer_held_out_than_sources():
    with pytest.raises(ConfigError, match="validation_size is 2; .* of the 3 sources"):
        largest_remainder(2, normalize_weights([1, 2, 3]))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("2*llava:a.json + llava:b.json", "a weight for each source"),
        ("-1*llava:a.json", "expected 1e-09 to"),
        ("tabletop + llava:b.json", "tabletop cannot be mixed"),
        ("2*lava:a.json", "did you mean 'llava'"),
    ],
)
def test_mixtures_that_are_none(source, said):
    with pytest.raises(ConfigError, match=said):
        opened_split(source)
