"""Rotary position embedding in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rope`."""
    low, high = x.float().chunk(2, dim=-1)  # [T, H, D / 2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)
