"""silu(gate) * up in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """See `silu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up
