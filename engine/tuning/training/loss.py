"""Cross entropy at completion positions, a few rows of the vocabulary at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Logits of so many positions exist at once: 256 rows of 49,152 words are 50 MB in float32.
CHUNK_ROWS = 256


def token_losses(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Negative log likelihood of each target.

    Args:
        hidden: [C, M] last hidden states of the predicting positions; head: [V, M], of one dtype.
        bias: [V] or None; targets: [C] int64.
    Returns: [C] float32. Differentiable in `hidden` alone: the head of a LoRA model is frozen.
    """
    losses: Tensor = _TokenLosses.apply(hidden, head, bias, targets)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    """The gradient of a chunk is taken while its logits are there, so they are neither kept nor computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradients = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = linear(hidden[rows], head, bias).float()
            of_target = logits.gather(1, targets[rows, None])
            top = logits.amax(1, keepdim=True)
            weights = logits.sub_(top).exp_()
            total = weights.sum(1, keepdim=True)
            losses[rows] = (total.log() + top - of_target)[:, 0]
            if gradients is not None:
                probabilities = weights.div_(total)
                probabilities.scatter_add_(1, targets[rows, None], probabilities.new_full((len(logits), 1), -1.0))
                gradients[rows] = probabilities.to(head.dtype) @ head
        if gradients is not None:
            ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * upstream[0][:, None].to(gradients.dtype), None, None, None
