"""Next-token cross-entropy of supervised tokens, the embedding table being frozen."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

# Elements of the logits that are held at a time: half a gigabyte in float32.
_MAX_LOGITS = 2**27


def supervised(
    hidden_states: Callable, embeddings: nn.Embedding, batch: dict, compile: str
) -> Callable:
    """Returns a function () -> mean loss of the supervised tokens, a scalar.

    Args:
      hidden_states: () -> [B, T, E] after the decoder's final norm.
      embeddings: the frozen table, which is the output head too.
      batch: tokens int64 [B, T] and target bool [B, T].
      compile: a mode of torch.compile, or empty.
    """
    tokens, target = batch["tokens"], batch["target"]
    # Flat indices of the supervised positions, once for all steps.
    number = torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
    # Position t predicts token t + 1.
    positions, labels = number[:, :-1][target[:, 1:]], tokens[:, 1:][target[:, 1:]]
    loss_and_gradient = _loss_and_gradient
    if compile:
        hidden_states = torch.compile(hidden_states, mode=compile)
        loss_and_gradient = torch.compile(loss_and_gradient, mode=compile)

    def loss() -> torch.Tensor:
        hidden = hidden_states().flatten(0, 1)[positions]
        return _Loss.apply(hidden, embeddings.weight, labels, loss_and_gradient)

    return loss


class _Loss(torch.autograd.Function):
    """The gradient is made together with the loss, from logits of a chunk of tokens at
    a time, so that no logits are kept."""

    @staticmethod
    def forward(ctx, hidden, table, labels, loss_and_gradient):
        count = max(1, _MAX_LOGITS // len(table))
        loss, gradient = 0.0, torch.empty_like(hidden)
        for start in range(0, len(labels), count):
            rows = slice(start, start + count)
            chunk_loss, gradient[rows] = loss_and_gradient(
                hidden[rows], table, labels[rows]
            )
            loss = loss + chunk_loss
        # As in hive_jax/training/losses.py: the gradient is as large as `hidden`, the
        # logits would be many times that.
        ctx.save_for_backward(gradient)
        ctx.count = len(labels)
        return loss / len(labels)

    @staticmethod
    def backward(ctx, cotangent):
        (gradient,) = ctx.saved_tensors
        return gradient * (cotangent / ctx.count).to(gradient.dtype), None, None, None


def _loss_and_gradient(hidden, table, labels):
    """The sum of the losses of hidden [L, E], and its gradient by `hidden`."""
    logits = F.linear(hidden.to(table.dtype), table).float()
    log_probability = torch.log_softmax(logits, dim=-1)
    index = labels[:, None]
    loss = -log_probability.gather(1, index).sum()
    # softmax - one-hot.
    error = log_probability.exp()
    error = error.scatter_add(1, index, error.new_full(index.shape, -1.0))
    return loss, (error.to(table.dtype) @ table).to(hidden.dtype)
