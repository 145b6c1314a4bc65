"""Positions of image tokens in the text."""

import jax.numpy as jnp

from hive_jax.models.fusion import interleave


def test_interleave_places_the_image_before_the_text_that_sees_it():
    # a b i i c d, i i a b c d, and a text without an image, a b c d i i.
    image_mask = jnp.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    image, text = interleave(image_mask, 2)
    assert image.tolist() == [[2, 3], [0, 1], [4, 5]]
    assert text.tolist() == [[0, 1, 4, 5], [2, 3, 4, 5], [0, 1, 2, 3]]


def test_interleave_shifts_masked_text_after_the_image_too():
    image, text = interleave(jnp.array([[0, 1, 0]], bool), 2)
    assert (image.tolist(), text.tolist()) == ([[1, 2]], [[0, 3, 4]])
