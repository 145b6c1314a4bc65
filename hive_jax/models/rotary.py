"""Rotary position embeddings."""

import jax
import jax.numpy as jnp
import numpy as np


def rotate(x: jax.Array, position: jax.Array, base: float | jax.Array) -> jax.Array:
    """Applies the rotary position embedding.

    Dimension i of a head's first half pairs with dimension i of its second half, as in
    Gemma and in transformers' `rotate_half`.

    Args:
      x: queries or keys [B, T, N, H].
      position: [B, T], integer or (with linear scaling) fractional; or [B, T, H / 2]
        with a position for each frequency.
      base: of the geometric series of wavelengths ("rope theta").

    Returns:
      [B, T, N, H] in the dtype of x.
    """
    # In float32: bfloat16 cannot represent positions above 256 exactly.
    half = x.shape[-1] // 2
    # Frequencies are [1, 1, 1, H / 2] and angles [B, T, 1, H / 2]: heads rotate alike.
    exponent = jnp.arange(half, dtype=jnp.float32)[None, None, None] / half
    frequency = 1.0 / jnp.asarray(base, jnp.float32) ** exponent
    position = position[..., None] if position.ndim == 2 else position
    angle = position[:, :, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x.dtype)


def grid_positions(side: int, frequencies: int) -> np.ndarray:
    """Returns the rotary position of each patch for each frequency, int[P, H / 2].

    Of the first 6/8 of the frequencies, even ones turn with the row and odd ones with the
    column: sections of 3/16 of the head each. The rest turn with the grid's centre.

    Args:
      side: of the grid, in patches.
      frequencies: half of the head dimension.
    """
    row, column = np.divmod(np.arange(side * side), side)
    number = np.arange(frequencies)
    by_axis = np.where(number % 2, column[:, None], row[:, None])
    return np.where(number < 6 * frequencies // 8, by_axis, side // 2)
