"""RMS norm of a row by one program, with the residual addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> Tensor:
    """See `rms_norm`."""
    rows, width = x.shape
    out = torch.empty_like(x)
    if rows:
        block = triton.next_power_of_2(width)
        has_residual = residual is not None
        _rms_norm[(rows,)](
            *(out, x, residual if has_residual else x, weight, width, eps),
            HAS_RESIDUAL=has_residual,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 16),
        )
    return out


@triton.jit
def _rms_norm(out, x, residual, weight, width, eps, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + start + column, inside, 0.0)
    if HAS_RESIDUAL:
        before = tl.load(residual + start + column, inside, 0.0)
        value = (before.to(tl.float32) + value.to(tl.float32)).to(value.dtype)
        tl.store(residual + start + column, value, inside)
    wide = value.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide) / width + eps)).to(value.dtype)
    scale = tl.load(weight + column, inside, 0.0)
    tl.store(out + start + column, (normed.to(tl.float32) * scale.to(tl.float32)).to(value.dtype), inside)
