"""Rotary position embeddings, in a text and in a grid, and their extension to longer
contexts."""

import jax
import jax.numpy as jnp
import numpy as np

# Wavelengths from the original context on are divided by the factor, those up to a
# quarter of it are not: the values of all Llama 3.1, 3.2 and 3.3.
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0


def rotate(
    x: jax.Array,
    position: jax.Array,
    base: float | jax.Array,
    factor: float = 1.0,
    original_length: int = 0,
) -> jax.Array:
    """Applies the rotary position embedding.

    Dimension i of a head's first half pairs with dimension i of its second half, as in
    Gemma and in transformers' `rotate_half`.

    Args:
      x: queries or keys [B, T, N, H].
      position: [B, T], integer or (with linear scaling) fractional; or [B, T, H / 2]
        with a position for each frequency.
      base: of the geometric series of wavelengths ("rope theta").
      factor, original_length: see `extended_frequency`; without a length, the factor is
        not used.

    Returns:
      [B, T, N, H] in the dtype of x.
    """
    # In float32: bfloat16 cannot represent positions above 256 exactly.
    half = x.shape[-1] // 2
    # Frequencies are [1, 1, 1, H / 2] and angles [B, T, 1, H / 2]: heads rotate alike.
    exponent = jnp.arange(half, dtype=jnp.float32)[None, None, None] / half
    frequency = 1.0 / jnp.asarray(base, jnp.float32) ** exponent
    if original_length:
        frequency = extended_frequency(frequency, factor, original_length)
    # [B, T, 1, 1] or [B, T, 1, H / 2].
    by_head = position[:, :, None, None] if position.ndim == 2 else position[:, :, None]
    angle = by_head.astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x.dtype)


def extended_frequency(
    frequency: jax.Array, factor: float, original_length: int
) -> jax.Array:
    """Divides low frequencies by a factor, as Llama 3.1 does ("llama3" in transformers).

    A frequency that turns at most once in the original context is divided by the factor,
    one that turns four times or more is unchanged, and between them the share of both
    is linear in the number of turns.

    Args:
      frequency: radians per token, any shape.
      factor: of the extension.
      original_length: of the context before the extension, in tokens.

    Returns:
      The new frequencies, in the same shape.
    """
    turns = original_length * frequency / (2 * np.pi)
    kept = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR)
    kept = jnp.clip(kept, 0.0, 1.0)
    return frequency * (kept + (1.0 - kept) / factor)


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
