"""A patch embedding that whitens the patches of images, in place of a random one."""

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.models.siglip import patches
from hive_jax.training.objectives import normalize_images


def whiten_patch_embedding(params: dict, images: np.ndarray) -> dict:
    """Returns parameters whose patch embedding whitens the patches of `images`.

    Args:
      params: nested dict with the branch `img`.
      images: uint8[n, height, width, 3].
    """
    embedding = params["img"]["embedding"]
    # [p, p, 3, D][1::2] is p and D.
    kernel, bias = whitening(images, *embedding["kernel"].shape[1::2])
    embedding = {
        name: jax.device_put(value, embedding[name].sharding)
        for name, value in (("kernel", kernel), ("bias", bias))
    }
    return params | {"img": params["img"] | {"embedding": embedding}}


def whitening(
    images: np.ndarray, patch_size: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patch embedding whose channels are uncorrelated and of unit variance
    over the patches of `images`.

    Most of the variance of raw patches is their mean colour, which makes a small tower
    slow to learn textures. The D largest principal components are used; if there are
    fewer than D, the other channels are zero.

    Args:
      images: uint8[n, height, width, 3].
      patch_size: p, in pixels.
      width: D.

    Returns:
      Kernel float32[p, p, 3, D] and bias float32[D].
    """
    # [n, P, p * p * 3], in the order of the flat kernel.
    x = patches(normalize_images(jnp.asarray(images)), patch_size)
    # float64: the smallest variances are many orders below the largest.
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    mean = x.mean(axis=0)
    # Columns of `components` are the principal components, by increasing variance.
    variance, components = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    largest = np.argsort(variance)[::-1][:width]
    kernel = np.zeros((x.shape[1], width))
    # The constant keeps directions with hardly any variance from being blown up.
    kernel[:, : len(largest)] = components[:, largest] / np.sqrt(
        variance[largest] + 1e-3
    )
    shape = (patch_size, patch_size, 3, width)
    bias = -(mean @ kernel)
    return kernel.reshape(shape).astype(np.float32), bias.astype(np.float32)
