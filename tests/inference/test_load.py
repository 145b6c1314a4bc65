"""`hive_jax.load`: images in, features and embeddings out."""

import numpy as np
import pytest
from PIL import Image

import hive_jax
from hive_jax.errors import DataError


@pytest.fixture(scope="module")
def model():
    return hive_jax.load("builtin:tabletop_siglip")


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    return Image.fromarray(pixels)


def test_arrays_and_images_have_the_same_features(model, image):
    features = model.encoder([image, image.resize((64, 64))], depths=(2, 8)).features
    assert features.shape == (2, 2, 64, 64)
    arrays = [np.asarray(image), np.asarray(image.resize((64, 64)))]
    again = model.encoder(arrays, depths=(2, 8)).features
    np.testing.assert_array_equal(features, again)
    batch = np.stack([np.asarray(image)] * 2)
    both = model.encoder(batch, depths=(8,)).features
    np.testing.assert_array_equal(both[0, 0], features[1, 0])


def test_embeddings_have_length_one(model, image):
    for embedding in (model.embed_images([image]), model.embed_texts(["a red cube"])):
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)


def test_one_image_is_refused_as_a_sequence(model, image):
    for one in (image, np.asarray(image)):
        with pytest.raises(
            DataError, match=r"images is one image; .* such as \[image\]"
        ):
            model.encoder(one)
    with pytest.raises(DataError, match="images is empty"):
        model.encoder([])


def test_encoder_is_saved_and_loaded_with_the_same_bits(model, image, tmp_path):
    model.encoder.save(tmp_path / "encoder.npz", format="big_vision")
    again = hive_jax.load(tmp_path / "encoder.npz")
    assert again.encoder.fingerprint == model.encoder.fingerprint
