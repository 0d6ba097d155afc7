"""x @ weight.T + bias in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `linear`."""
    return functional.linear(x, weight, bias)
