"""Where a model's arrays live while it runs on several devices.

Left to itself, a compiler that finds weights and batch split over the same devices may
split the computation as the weights are, and have every device see the whole batch.
Models therefore say what is rows of a batch, and which weights are about to be used.
"""

import dataclasses
from collections.abc import Callable

import jax


def _as_it_is(x):
    return x


@dataclasses.dataclass(frozen=True)
class Placement:
    """Two constraints, of which neither changes a value.

    Attributes:
      rows: activations [B, ...] -> the same, with B split over the devices.
      weights: a tree of a layer's parameters -> the same, gathered from where they
        are kept to where they are used; kernels in the dtype of the computation.
    """

    rows: Callable[[jax.Array], jax.Array] = _as_it_is
    weights: Callable[[dict], dict] = _as_it_is


ONE_DEVICE = Placement()
