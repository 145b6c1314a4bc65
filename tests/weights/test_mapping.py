"""Resizing of position embeddings."""

import re

import numpy as np
import pytest
from helpers.tiny_weights import IMAGE, arrays

from hive_jax.weights import load_encoder
from hive_jax.weights.mapping import resize_positions


def grid(side, width=3):
    rng = np.random.default_rng(side)
    return rng.normal(size=(1, side * side, width)).astype(np.float32)


def interpolated(position, side, expected):
    """Bilinear interpolation with aligned corners, written out."""
    old = position.reshape(side, side, -1)
    new = np.empty((expected, expected, old.shape[-1]))
    places = np.linspace(0, side - 1, expected) if expected > 1 else [0.0]
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            top, left = min(int(y), side - 2), min(int(x), side - 2)
            down, right = y - top, x - left
            upper = old[top, left] * (1 - right) + old[top, left + 1] * right
            lower = old[top + 1, left] * (1 - right) + old[top + 1, left + 1] * right
            new[i, j] = upper * (1 - down) + lower * down
    return new.reshape(1, expected * expected, -1)


@pytest.mark.parametrize(
    ("side", "expected"), [(2, 3), (3, 2), (4, 7), (14, 16), (16, 24)]
)
def test_resized_positions_are_linear_with_aligned_corners(side, expected):
    got = resize_positions(grid(side), expected**2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got, interpolated(grid(side), side, expected), rtol=0, atol=1e-5
    )


def test_resizing_to_the_same_number_of_patches_changes_nothing():
    position = grid(5)
    np.testing.assert_array_equal(resize_positions(position, 25), position)


def test_positions_resize_from_and_to_one_patch():
    assert resize_positions(grid(1), 9).shape == (1, 9, 3)
    assert resize_positions(grid(3), 1).shape == (1, 1, 3)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (4, 0)])
def test_non_square_number_of_patches_raises(old, new):
    with pytest.raises(ValueError, match=re.escape("square grid")):
        resize_positions(np.zeros((1, old, 2), np.float32), new)


def test_load_encoder_resizes_positions_for_another_image_size(tmp_path):
    values = arrays(IMAGE)
    np.savez(tmp_path / "encoder.npz", **values)
    path = str(tmp_path / "encoder.npz")
    config, params = load_encoder(path, image_size=16)
    assert (config.image_size, config.num_patches) == (16, 16)
    expected = resize_positions(values["pos_embedding"], 16)
    np.testing.assert_array_equal(params["pos_embedding"], expected)
    kernel = params["embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, values["embedding/kernel"])
    config, params = load_encoder(path, image_size=8)
    assert config == IMAGE
    np.testing.assert_array_equal(params["pos_embedding"], values["pos_embedding"])
    # 11 = 2 * 4 + 3: as many patches, and a remainder that is cut off.
    config, params = load_encoder(path, image_size=11)
    assert config.image_size == 11
    np.testing.assert_array_equal(params["pos_embedding"], values["pos_embedding"])
