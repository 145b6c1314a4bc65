"""Gradients of the whole model: which depths, pixels and patches they reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_hive import (
    IMAGE_MASK,
    IMAGES,
    TINY,
    TOKENS,
    WITH_IMAGES,
    model,
    random_params,
    with_gates,
)

from hive_jax.models.fusion import fusion_class

# Gradients.


@functools.cache
def gradient(fusion):
    """(params, images) -> the gradients of the encoder and of the images."""

    def loss(img, params, images):
        params = {"params": params | {"img": img}}
        hidden = model(fusion).apply(params, images, TOKENS, IMAGE_MASK)
        return jnp.sum(jnp.sin(hidden))

    return jax.jit(
        lambda params, images: jax.grad(loss, (0, 2))(params["img"], params, images)
    )


@pytest.mark.parametrize(
    ("fusion", "gates", "reached"),
    [
        ("hive", [1, 0], [True, False, False]),
        ("hive", [0, 1], [True, True, False]),
        ("hive", [0, 0], [False, False, False]),
        ("cascaded", [1, 0], [True, True, True]),
    ],
)
def test_gradient_of_a_connection_reaches_its_depth_and_earlier_blocks_only(
    fusion, gates, reached
):
    params = with_gates(random_params(fusion), gates)
    img, _ = gradient(fusion)(params, IMAGES)
    for leaf in jax.tree.leaves(img["Transformer"]["encoderblock"]):
        assert np.any(leaf.reshape(3, -1), axis=1).tolist() == reached
    for leaf in jax.tree.leaves(img["embedding"]):
        assert np.any(leaf) == any(reached)


@pytest.mark.parametrize("fusion", WITH_IMAGES)
def test_gradient_reaches_every_pixel_of_an_unmasked_image_only(fusion):
    _, images = gradient(fusion)(random_params(fusion), IMAGES)
    reached = np.any(images, axis=-1)
    assert np.all(reached[:2])
    assert not np.any(reached[2])


@pytest.mark.parametrize("fusion", ["hive", "cascaded"])
def test_gradient_reaches_every_patch_of_every_connection(fusion):
    params = random_params(fusion)["fusion"]
    module = fusion_class(fusion)(TINY.connections, 16, TINY.decoder)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 9, 16)).astype(np.float32)
    x = rng.normal(size=(3, 7, 24)).astype(np.float32)

    def attend(fusion, features):
        _, _, image_kv = fusion.prepare(features, x, IMAGE_MASK)
        arguments = x, image_kv, IMAGE_MASK
        return [fusion.before_layer(number, *arguments)[0] for number in range(2)]

    def total(features):
        outputs = module.apply({"params": params}, features, method=attend)
        return sum(jnp.sum(jnp.sin(x)) for x in outputs)

    reached = np.any(jax.jit(jax.grad(total))(features), axis=-1)
    has_image = IMAGE_MASK.any(axis=1)
    np.testing.assert_array_equal(
        reached, np.broadcast_to(has_image[None, :, None], (2, 3, 9))
    )
