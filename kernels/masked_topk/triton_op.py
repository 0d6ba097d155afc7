"""Masked search on a GPU: products, mask and the best of each block in one launch, then a choice by unique keys.

A program scores 128 rows for a tile of queries. Query tiles of the same rows run side by side, so the rows come from
memory once; a block of rows of which none may be found is not read at all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.masked_topk.select import BLOCK_ROWS, search_in_parts

# 256 MB of scores.
_MAX_SCORES = 1 << 26
_LEAST_QUERIES, _MOST_QUERIES = 16, 64


def masked_topk_triton(queries: Tensor, rows: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `masked_topk`."""
    num_queries, dim = queries.shape
    tile = min(max(triton.next_power_of_2(max(num_queries, 1)), _LEAST_QUERIES), _MOST_QUERIES)

    def score_rows(first: int, stop: int) -> tuple[Tensor, Tensor]:
        num_blocks = triton.cdiv(stop - first, BLOCK_ROWS)
        scores = torch.empty((num_queries, num_blocks, BLOCK_ROWS), device=rows.device)
        maxima = torch.empty((num_queries, num_blocks), device=rows.device)
        _score[(num_blocks * triton.cdiv(num_queries, tile),)](
            *(scores, maxima, queries, rows, rows if mask is None else mask),
            *(num_queries, first, stop, num_blocks, dim),
            HAS_MASK=mask is not None,
            IS_EXACT=rows.dtype == torch.float32,
            BLOCK_QUERIES=tile,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_DIM=128 // rows.element_size(),
            num_warps=4,
            num_stages=3,
        )
        return scores, maxima

    return search_in_parts(score_rows, num_queries, len(rows), k, rows.device, _MAX_SCORES)


@triton.jit(do_not_specialize=["num_queries", "first", "stop", "num_blocks"])
def _score(
    scores,
    maxima,
    queries,
    rows,
    mask,
    num_queries,
    first,
    stop,
    num_blocks,
    dim,
    HAS_MASK: tl.constexpr,
    IS_EXACT: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    num_tiles = tl.cdiv(num_queries, BLOCK_QUERIES)
    block = tl.program_id(0) // num_tiles
    query = (tl.program_id(0) % num_tiles * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)).to(tl.int64)
    place = tl.arange(0, BLOCK_ROWS)
    row = (first + block * BLOCK_ROWS + place).to(tl.int64)
    is_query = query < num_queries
    is_found = row < stop
    if HAS_MASK:
        word = tl.load(mask + row // 32, is_found, 0)
        is_found = is_found & (((word >> (row % 32).to(tl.int32)) & 1) != 0)
    sums = tl.zeros([BLOCK_QUERIES, BLOCK_ROWS], tl.float32)
    if tl.max(is_found.to(tl.int32), 0) > 0:
        for start in range(0, dim, BLOCK_DIM):
            column = start + tl.arange(0, BLOCK_DIM)
            is_column = (column < dim)[None, :]
            asked = tl.load(queries + query[:, None] * dim + column[None, :], is_query[:, None] & is_column, 0.0)
            # What may not be found may never have been written.
            stored = tl.load(rows + row[:, None] * dim + column[None, :], is_found[:, None] & is_column, 0.0)
            if IS_EXACT:
                sums += tl.dot(asked, tl.trans(stored), input_precision="ieee")
            else:
                sums += tl.dot(asked, tl.trans(stored))
    found = tl.where(is_found[None, :], sums, float("-inf"))
    target = (query * num_blocks + block) * BLOCK_ROWS
    tl.store(scores + target[:, None] + place[None, :], found, is_query[:, None])
    tl.store(maxima + query * num_blocks + block, tl.max(found, 1), is_query)
