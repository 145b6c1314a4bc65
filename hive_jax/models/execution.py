"""How towers run: scan, rematerialization and flash attention."""

import dataclasses

# What the forward pass of a block stores for the backward pass: everything; the results
# of products with weights; or the input of the block alone. layer_stack.py has JAX's
# policies.
REMAT_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a tower runs; its architecture and parameters are the same in any case.

    Attributes:
      scan: `lax.scan` over layers, which compiles fast, or unrolled layers, which XLA
        can optimize across.
      remat: rematerialization, one of REMAT_POLICIES.
      flash: use cuDNN's flash attention where it supports the shapes.
    """

    scan: bool = False
    remat: str = "none"
    flash: bool = True


@dataclasses.dataclass(frozen=True)
class ModelExecution:
    """The Execution of each tower of a model."""

    encoder: Execution = Execution()
    decoder: Execution = Execution()
    text_tower: Execution = Execution()


_SCAN = Execution(scan=True)
# Traces and compiles fastest: for shapes and checks.
SCANNED = ModelExecution(_SCAN, _SCAN, _SCAN)
