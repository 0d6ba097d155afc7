"""`lora_add` on a GPU for rows whose slots lie there: A's products in one launch, B's in another.

A program has one row and a few of its results, so it reads the weights of that row's adapter and no others. Made for
the few rows of a decode step; for prompts, which share an adapter, products of whole runs read less.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_RANK, _BLOCK_IN = 8, 512
_BLOCK_WIDTH, _BLOCK_OUT = 16, 256


def lora_add_triton(out: Tensor, x: Tensor, a: Tensor, b: Tensor, slots: Tensor) -> None:
    """See `lora_add`. `a` [S, W, in] and `b` [S, W, out], W the ranks of all parts; `slots` [T] int32, -1 for none.

    A's products stay float32.
    """
    rows, inputs = x.shape
    width, outputs = a.shape[1], b.shape[2]
    if rows == 0:
        return
    inner = torch.empty((rows, width), dtype=torch.float32, device=x.device)
    _shrink[rows, triton.cdiv(width, _BLOCK_RANK)](
        *(inner, x, a, slots, inputs, width), BLOCK_RANK=_BLOCK_RANK, BLOCK_IN=_BLOCK_IN, num_warps=4
    )
    _expand[rows, triton.cdiv(outputs, _BLOCK_OUT)](
        *(out, inner, b, slots, outputs, width), BLOCK_WIDTH=_BLOCK_WIDTH, BLOCK_OUT=_BLOCK_OUT, num_warps=4
    )


@triton.jit
def _shrink(inner, x, a, slots, inputs, width, BLOCK_RANK: tl.constexpr, BLOCK_IN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        rank = tl.program_id(1) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
        is_rank = rank < width
        weights = a + (slot * width + rank)[:, None] * inputs
        sums = tl.zeros([BLOCK_RANK, BLOCK_IN], tl.float32)
        for start in range(0, inputs, BLOCK_IN):
            column = start + tl.arange(0, BLOCK_IN)
            is_column = column < inputs
            value = tl.load(x + row * inputs + column, is_column, 0.0).to(tl.float32)
            weight = tl.load(weights + column[None, :], is_rank[:, None] & is_column[None, :], 0.0).to(tl.float32)
            sums += weight * value[None, :]
        tl.store(inner + row * width + rank, tl.sum(sums, 1), is_rank)


@triton.jit
def _expand(out, inner, b, slots, outputs, width, BLOCK_WIDTH: tl.constexpr, BLOCK_OUT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        is_column = column < outputs
        place = out + row * outputs + column
        before = tl.load(place, is_column, 0.0)
        sums = before.to(tl.float32)
        for start in range(0, width, BLOCK_WIDTH):
            rank = start + tl.arange(0, BLOCK_WIDTH)
            is_rank = rank < width
            value = tl.load(inner + row * width + rank, is_rank, 0.0)
            weights = b + (slot * width + rank)[:, None] * outputs + column[None, :]
            weight = tl.load(weights, is_rank[:, None] & is_column[None, :], 0.0).to(tl.float32)
            sums += tl.sum(weight * value[:, None], 0)
        tl.store(place, sums.to(before.dtype), is_column)
