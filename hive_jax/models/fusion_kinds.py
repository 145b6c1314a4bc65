"""Properties of each fusion that need no model; hive_jax/models/fusion.py has the models.

Without JAX or Flax, because a config is read and validated before a run needs them.
"""

import dataclasses
from collections.abc import Callable

# Pairs (encoder depth, decoder layer), both counted from 1.
Connections = tuple[tuple[int, int], ...]

# See cross_attention.Projector.
PROJECTORS = ("ln_mlp", "mlp", "linear")


def _each_depth(pairs: Connections, deepest: int) -> Connections:
    """Returns the pairs of the config: each layer reads its own depth."""
    return pairs


def _deepest_only(pairs: Connections, deepest: int) -> Connections:
    """Returns the pairs with the deepest encoder depth in place of their own."""
    # Each pair has its own projector and block, as in HIVE: the two models differ in
    # the depths alone, and cost the same.
    return tuple((deepest, layer) for _, layer in pairs)


def _before_first_layer(pairs: Connections, deepest: int) -> Connections:
    """Returns one pair: the deepest connected depth, and the first decoder layer."""
    # Layer 1: image tokens pass through all decoder layers.
    return ((max(depth for depth, _ in pairs), 1),)


@dataclasses.dataclass(frozen=True)
class FusionKind:
    """Properties of a fusion.

    Attributes:
      uses_image: whether the model has an encoder at all.
      export_kind: exported component that holds the whole model, "hive" or "vlm"; ""
        if it cannot be exported.
      has_attention_weights: whether `Fusion.attention_weights` is implemented.
      projectors: the kinds of projectors that it may have, the default first.
      connect: the connections that the fusion uses, given the checked pairs of the
        config and the deepest encoder depth that may be read.
    """

    uses_image: bool = True
    export_kind: str = ""
    has_attention_weights: bool = False
    projectors: tuple[str, ...] = PROJECTORS
    connect: Callable[[Connections, int], Connections] = _each_depth


FUSIONS = {
    "hive": FusionKind(export_kind="hive", has_attention_weights=True),
    "cascaded": FusionKind(
        export_kind="hive", has_attention_weights=True, connect=_deepest_only
    ),
    "joint": FusionKind(export_kind="hive", has_attention_weights=True),
    # The projector is that of LLaVA-1.5, whose checkpoints have no other.
    "self_attention": FusionKind(
        export_kind="vlm", projectors=("mlp",), connect=_before_first_layer
    ),
    "none": FusionKind(uses_image=False),
}


def fusion_kind(name: str) -> FusionKind:
    """Returns the properties of a fusion.

    Raises:
      ValueError: `name` is not a key of FUSIONS.
    """
    if name not in FUSIONS:
        raise ValueError(f"model.fusion is {name!r}; expected one of {(*FUSIONS,)}")
    return FUSIONS[name]
