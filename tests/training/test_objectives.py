"""The model of an objective: its dtype and its inputs."""

import jax.numpy as jnp
import numpy as np

from hive_jax.training import objectives


def test_dtype_auto_is_float32_on_cpu(tiny_run):
    assert objectives.build_model(tiny_run(dtype="auto")).dtype == jnp.float32
    assert objectives.build_model(tiny_run(dtype="bfloat16")).dtype == jnp.bfloat16


def test_images_are_scaled_to_minus_one_to_one():
    got = objectives.normalize_images(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(got, [-1.0, -0.6, 1.0], atol=1e-6)
