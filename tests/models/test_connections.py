"""Which decoder layer attends to which encoder depth."""

import pytest

from hive_jax.models.connections import (
    block_number,
    default_connections,
    resolve_connections,
)


@pytest.mark.parametrize(
    ("encoder_depth", "decoder_depth", "connections"),
    [
        (24, 26, ((4, 4), (8, 9), (12, 13), (16, 17), (20, 22), (24, 26))),
        (24, 40, ((4, 7), (8, 13), (12, 20), (16, 27), (20, 33), (24, 40))),
        (24, 3, ((8, 1), (16, 2), (24, 3))),
        (8, 4, ((4, 2), (8, 4))),
        (1, 1, ((1, 1),)),
    ],
)
def test_default_connections_are_evenly_spaced_and_include_the_last_layers(
    encoder_depth, decoder_depth, connections
):
    assert default_connections(encoder_depth, decoder_depth) == connections


def test_num_connections_sets_the_number_of_default_pairs():
    assert default_connections(8, 4, 4) == ((2, 1), (4, 2), (6, 3), (8, 4))
    assert resolve_connections("hive", ((1, 1),), 8, 4, 2) == ((1, 1),)
    with pytest.raises(ValueError, match="num_connections is 5"):
        resolve_connections("hive", (), 8, 4, 5)


@pytest.mark.parametrize(
    ("fusion", "connections", "resolved"),
    [
        ("hive", (), ((4, 2), (8, 4))),
        ("hive", ((5, 1), (2, 3)), ((5, 1), (2, 3))),
        ("cascaded", (), ((8, 2), (8, 4))),
        ("cascaded", ((5, 1), (2, 3)), ((8, 1), (8, 3))),
        ("joint", ((5, 1), (2, 3)), ((5, 1), (2, 3))),
        ("self_attention", (), ((8, 1),)),
        ("self_attention", ((5, 1), (2, 3)), ((5, 1),)),
        ("none", (), ()),
        ("none", ((5, 1),), ()),
    ],
)
def test_each_fusion_adapts_the_configured_connections(fusion, connections, resolved):
    assert resolve_connections(fusion, connections, 8, 4) == resolved


@pytest.mark.parametrize(
    ("fusion", "connections", "feature_depth", "resolved"),
    [
        ("hive", (), -2, ((4, 2), (7, 4))),
        ("joint", (), 7, ((4, 2), (7, 4))),
        ("hive", ((5, 1), (7, 3)), -2, ((5, 1), (7, 3))),
        ("cascaded", (), -2, ((7, 2), (7, 4))),
        ("cascaded", ((5, 1), (2, 3)), 5, ((5, 1), (5, 3))),
        ("self_attention", (), -2, ((7, 1),)),
        ("self_attention", (), -1, ((8, 1),)),
        ("none", (), -2, ()),
    ],
)
def test_feature_depth_is_the_deepest_block_that_is_read(
    fusion, connections, feature_depth, resolved
):
    assert resolve_connections(fusion, connections, 8, 4, 0, feature_depth) == resolved


def test_feature_depth_keeps_the_number_of_connections():
    """23 of 24, as the authors read it."""
    assert resolve_connections("hive", (), 24, 40, 0, -2) == (
        *((4, 7), (8, 13), (12, 20), (15, 27), (19, 33), (23, 40)),
    )


def test_blocks_count_from_the_end_too():
    assert [block_number(n, 8, "k") for n in (1, 8, 0, -1, -2, -8)] == [
        1,
        8,
        8,
        8,
        7,
        1,
    ]
    for number in (9, -9):
        with pytest.raises(ValueError, match=rf"k is {number}; expected 1 to 8, -1 to"):
            block_number(number, 8, "k")


def test_connections_deeper_than_feature_depth_raise():
    with pytest.raises(ValueError, match=r"\(8, 1\): .* 1 to 7, as feature_depth"):
        resolve_connections("hive", ((8, 1),), 8, 4, 0, -2)


@pytest.mark.parametrize(
    ("fusion", "connections", "message"),
    [
        ("later", (), "'later'.*hive"),
        ("hive", ((9, 1),), r"\(9, 1\).*1 to 8.*1 to 4"),
        ("hive", ((0, 1),), r"\(0, 1\)"),
        ("hive", ((1, 5),), r"\(1, 5\)"),
        ("cascaded", ((1, 0),), r"\(1, 0\)"),
        ("hive", ((1, 3), (2, 1)), r"\[3, 1\] must increase"),
        ("hive", ((1, 3), (2, 3)), r"\[3, 3\] must increase"),
    ],
)
def test_invalid_connections_raise(fusion, connections, message):
    with pytest.raises(ValueError, match=message):
        resolve_connections(fusion, connections, 8, 4)
