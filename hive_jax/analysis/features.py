"""Encoder features by depth: extraction, PCA colours, comparison of two encoders."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.models.config import SiglipConfig
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.training.objectives import normalize_images

# Features of all depths are returned, so that memory grows with it.
_BATCH = 32


def extract_features(
    config: SiglipConfig, params: dict, images: np.ndarray, dtype=jnp.float32
) -> np.ndarray:
    """Computes the outputs of every encoder block.

    Args:
      config: architecture of the encoder.
      params: nested dict of its parameters.
      images: uint8[n, size, size, 3].
      dtype: dtype of the computation.

    Returns:
      float32[L, n, P, D].
    """
    model = SiglipEncoder(config, dtype)
    # Before the final norm at every depth, the last one included: depths compare alike.
    depths = tuple(range(1, config.depth + 1))

    @jax.jit
    def read(params, images):
        out = model.apply({"params": params}, normalize_images(images), depths)
        return out.features.astype(jnp.float32)

    batches = [
        np.asarray(read(params, images[start : start + _BATCH]))
        for start in range(0, len(images), _BATCH)
    ]
    # [L, B, P, D], along the images.
    return np.concatenate(batches, axis=1)


def principal_colours(features: np.ndarray) -> np.ndarray:
    """Maps the first three principal components of patches to red, green and blue.

    Args:
      features: float[n, P, D] of one depth; the components are shared by all images, so
        their colours are comparable.

    Returns:
      float[n, P, 3] in 0 to 1.
    """
    # Patches of all images in one decomposition.
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    # The SVD leaves the sign of a direction open; make its largest entry positive, so
    # that colours are reproducible.
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    projected = centred @ (directions * signs[:, None])[:3].T
    # Fewer than three patches or dimensions: missing colours are 0.
    projected = np.pad(projected, ((0, 0), (0, 3 - projected.shape[1])))
    # Percentiles instead of extremes: outlier patches would use up the colour range.
    low, high = np.percentile(projected, (1, 99), axis=0)
    colours = (projected - low) / np.maximum(high - low, 1e-12)
    return np.clip(colours, 0, 1).reshape(*features.shape[:-1], 3)


def compare_features(
    features: np.ndarray, base: np.ndarray
) -> dict[str, Sequence[float]]:
    """Compares features with those of a base encoder at each depth.

    Args:
      features: float[L, n, P, D].
      base: float[L, n, P, D] of the base encoder on the same images.

    Returns:
      L values each. "cka": linear centred kernel alignment over all patches (Kornblith
      et al., 2019), 1 for features equal up to rotation and scale; "distance": relative
      Frobenius distance |F - F0| / |F0|.
    """
    pairs = [
        # Every patch of every image is an input.
        (a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
        for a, b in zip(
            features.astype(np.float64), base.astype(np.float64), strict=True
        )
    ]
    return {
        "cka": [linear_cka(a, b) for a, b in pairs],
        "distance": [
            float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs
        ],
    }


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the linear CKA, |A^T B|^2 / (|A^T A| |B^T B|), of column-centred A and B.

    Args:
      a: float[n, D].
      b: float[n, E], of the same n inputs.

    Returns:
      Similarity from 0 to 1.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    # Of D x D matrices and not n x n: there are many more patches than dimensions.
    cross = np.linalg.norm(a.T @ b) ** 2
    return float(cross / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))
