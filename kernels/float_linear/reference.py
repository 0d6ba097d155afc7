"""A linear layer with an optional GELU in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def float_linear_reference(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """See `float_linear`."""
    out = functional.linear(x, weight, bias)
    return functional.gelu(out) if gelu else out
