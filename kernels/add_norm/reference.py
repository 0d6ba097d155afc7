"""Layer norm of a sum in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm


def add_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `add_norm`."""
    return layer_norm(x + residual, weight.shape, weight, bias, eps)
