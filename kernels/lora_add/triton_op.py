"""`lora_add` on a GPU: A's products in one launch, B's in another, however many adapters there are.

Where each row has a slot of its own (BGMV), a program has one row and a few of its results, so it reads the weights of
that row's adapter and no others: made for the few rows of a decode step. In runs of rows that share an adapter (SGMV),
a program has a tile of rows and multiplies matrices: made for prompts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_RANK, _BLOCK_IN = 8, 512
_BLOCK_WIDTH, _BLOCK_OUT = 16, 256
# Of a program that multiplies matrices: inner dimension and results.
_TILE_INNER, _TILE_RESULTS = 32, 64


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


def lora_add_runs_triton(out: Tensor, x: Tensor, a: Tensor, b: Tensor, tiles: Tensor, tile_rows: int) -> None:
    """See `lora_add`. `tiles` [n, 3] int32: first row, rows (up to `tile_rows`) and slot; other rows stay as they are.

    A's products are rounded to x's dtype, as torch rounds them.
    """
    rows, inputs = x.shape
    width, outputs = a.shape[1], b.shape[2]
    if len(tiles) == 0:
        return
    inner = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    options = {"IS_EXACT": x.dtype == torch.float32, "BLOCK_ROWS": tile_rows, "num_warps": 4}
    for target, source, weight, sizes, is_added in (
        # A is [S, results, inner dimension], B the other way round.
        (inner, x, a, (inputs, width, inputs, 1), False),
        (out, inner, b, (width, outputs, 1, outputs), True),
    ):
        _multiply_runs[len(tiles), triton.cdiv(sizes[1], _TILE_RESULTS)](
            *(target, source, weight, tiles, *sizes),
            IS_ADDED=is_added,
            BLOCK_INNER=_TILE_INNER,
            BLOCK_RESULTS=_TILE_RESULTS,
            **options,
        )


@triton.jit
def _multiply_runs(
    target,
    source,
    weight,
    tiles,
    inner,
    results,
    result_stride,
    inner_stride,
    IS_ADDED: tl.constexpr,
    IS_EXACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    BLOCK_RESULTS: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * 3
    first = tl.load(tile).to(tl.int64)
    count = tl.load(tile + 1)
    slot = tl.load(tile + 2).to(tl.int64)
    place = tl.arange(0, BLOCK_ROWS)
    is_row = place < count
    row = first + place
    result = tl.program_id(1) * BLOCK_RESULTS + tl.arange(0, BLOCK_RESULTS)
    is_result = result < results
    weights = weight + slot * inner * results
    sums = tl.zeros([BLOCK_ROWS, BLOCK_RESULTS], tl.float32)
    for start in range(0, inner, BLOCK_INNER):
        column = start + tl.arange(0, BLOCK_INNER)
        is_column = column < inner
        value = tl.load(source + row[:, None] * inner + column[None, :], is_row[:, None] & is_column[None, :], 0.0)
        offset = column[:, None] * inner_stride + result[None, :] * result_stride
        factor = tl.load(weights + offset, is_column[:, None] & is_result[None, :], 0.0)
        if IS_EXACT:
            sums += tl.dot(value, factor, input_precision="ieee")
        else:
            sums += tl.dot(value, factor)
    is_kept = is_row[:, None] & is_result[None, :]
    place_of = target + row[:, None] * results + result[None, :]
    if IS_ADDED:
        sums += tl.load(place_of, is_kept, 0.0).to(tl.float32)
    tl.store(place_of, sums.to(target.dtype.element_ty), is_kept)


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
