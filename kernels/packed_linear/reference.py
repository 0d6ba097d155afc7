"""What the codes of a weight stand for, and the product with it, in float32: the definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 32


def dequantise(codes: Tensor, scales: Tensor, mins: Tensor | None) -> Tensor:
    """float32 [out, in] of a weight's codes; see `BlockCodes` for the layouts."""
    rows = codes.shape[0]
    if mins is None:
        blocks = codes.reshape(rows, -1, BLOCK).float()
        return (blocks * scales.float().unsqueeze(-1)).reshape(rows, -1)
    nibbles = codes.reshape(rows, -1, BLOCK // 2)
    blocks = torch.cat([nibbles & 15, nibbles >> 4], dim=-1).float()
    return (blocks * scales.float().unsqueeze(-1) + mins.float().unsqueeze(-1)).reshape(rows, -1)


def packed_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `packed_linear`; `weight` is what `dequantise` gives."""
    return functional.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)
