"""One train step: mixed precision, clipping by the global norm, AdamW."""

import contextlib
import json
from collections.abc import Callable

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Tried in this order; the first one that takes the shapes and the mask is used.
_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def prepared(job: dict, make_loss: Callable, tuned: bool) -> Callable:
    """Returns a function () -> loss that makes one step, asynchronously on a GPU.

    Args:
      job: see `worker.py`.
      make_loss: (model, batch, job) -> the function () -> loss.
      tuned: whether to choose what is fastest, or leave it to torch and transformers.
    """
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        job["weights"], dtype=torch.float32, trust_remote_code=True
    )
    # As one trains; these models have no dropout by default.
    model = model.to(device).train()
    groups = _trainable(model, job["multipliers"])
    trainable = [weight for weights in groups.values() for weight in weights]
    mixed = dtype != torch.float32
    if tuned and mixed:
        _shorten_frozen(model, dtype)
    options = job["optimizer"]
    peak_lr, clip_norm = options["peak_lr"], options["clip_norm"]
    optimizer = torch.optim.AdamW(
        [{"params": groups[m], "lr": m * peak_lr} for m in groups],
        betas=(options["beta1"], options["beta2"]),
        eps=1e-8,
        weight_decay=0.0,
        # One kernel for all weights: the fastest of torch's three implementations.
        fused=True,
    )
    loss_of = make_loss(model, _batch(job["batch"], device), job)
    best = tuned and device.type == "cuda"

    def step() -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(device.type, dtype, enabled=mixed))
            if best:
                stack.enter_context(sdpa_kernel(_BACKENDS, set_priority=True))
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, clip_norm)
        optimizer.step()
        # Freed, not filled with zeros.
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _batch(path: str, device: torch.device) -> dict[str, torch.Tensor]:
    with np.load(path) as arrays:
        names = ("image", "tokens", "target")
        batch = {name: torch.from_numpy(arrays[name]).to(device) for name in names}
    return batch | {"tokens": batch["tokens"].long()}


def _trainable(model: nn.Module, multipliers: dict) -> dict[float, list]:
    """Returns multiplier -> trained weights; all others stop requiring gradients.

    Raises:
      ValueError: the files and the model do not have the same tensors.
    """
    factors = {_short(name): factor for name, factor in multipliers.items()}
    weights = {_short(name): weight for name, weight in model.named_parameters()}
    if set(factors) != set(weights):
        raise ValueError(
            f"the files and {type(model).__name__} do not have the same tensors: "
            f"{json.dumps(sorted(set(factors) ^ set(weights)))}"
        )
    groups = {}
    # Frozen weights have no gradient, as in hive_jax.
    for name, weight in weights.items():
        weight.requires_grad_(factors[name] is not None)
        if factors[name] is not None:
            groups.setdefault(factors[name], []).append(weight)
    return groups


def _short(name: str) -> str:
    """Strips the prefixes that differ between versions of transformers from a name."""
    names = name.split(".")
    return ".".join(level for level in names if level not in ("model", "vision_model"))


def _shorten_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts frozen matrices once to the dtype of the computation, not in each step.

    Norms and biases stay float32.
    """
    for weight in model.parameters():
        if not weight.requires_grad and weight.ndim > 1:
            weight.data = weight.data.to(dtype)
