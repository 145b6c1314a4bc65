"""Outputs in which transformers is known to differ from hive_jax."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class KnownDeviation:
    """What a version of transformers computes instead of an expected output.

    Attributes:
      output: its output: pixels float32[1, 3, size, size] in [-1, 1], or ids int[T].
      reason: why, and what to do about it.
    """

    output: np.ndarray
    reason: str
