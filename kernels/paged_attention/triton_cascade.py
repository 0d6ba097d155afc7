"""Paged attention on a GPU where requests share blocks: each shared block is read once for all of them.

A program has a tile of query tokens, of any requests that share the blocks of its item, and leaves what it found under
each pair of item and token; a second launch merges the pairs of a token. The items are those of the native kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.paged_attention.plan import PagedPlan, decode_rows
from kernels.paged_attention.triton_keys import attend_keys

_LOG2_E = 1.4426950408889634
_TILE_ROWS = 64


def cascade_triton(
    query: Tensor, keys: Tensor, values: Tensor, plan: PagedPlan, *, scale: float, window: int, lse: Tensor | None
) -> Tensor:
    """See `paged_attention`."""
    tokens, heads, dim = query.shape
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    rows = max(decode_rows(group), _TILE_ROWS)
    work = plan.cascade(rows // group)
    out = torch.empty_like(query)
    num_pairs = len(work.rows)
    parts = torch.empty((num_pairs, heads, dim), dtype=torch.float32, device=query.device)
    stats = torch.empty((num_pairs, heads, 2), dtype=torch.float32, device=query.device)
    block_dim = max(triton.next_power_of_2(dim), 16)
    _attend_items[len(work.tiles), kv_heads](
        *(parts, stats, query, keys, values, plan.tables, work.tiles, work.rows, work.positions),
        *(scale * _LOG2_E, window, plan.tables.shape[1]),
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        HAS_WINDOW=window > 0,
        IS_EXACT=query.dtype == torch.float32,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=rows,
        BLOCK_KEYS=max(min(64, 16384 // (block_dim * query.element_size())), 16),
        num_warps=4,
        num_stages=2,
    )
    _merge_pairs[tokens, heads](
        *(out, out if lse is None else lse, parts, stats, work.starts, work.by_row),
        HEADS=heads,
        DIM=dim,
        HAS_LSE=lse is not None,
        BLOCK_DIM=block_dim,
        num_warps=2,
    )
    return out


@triton.jit(do_not_specialize=["window", "table_width"])
def _attend_items(
    parts,
    stats,
    query,
    keys,
    values,
    tables,
    tiles,
    rows,
    positions,
    scale,
    window,
    table_width,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_EXACT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * 5
    kv_head = tl.program_id(1)
    request = tl.load(tile).to(tl.int64)
    begin = tl.load(tile + 1) * 16
    end = tl.load(tile + 2) * 16
    first_pair = tl.load(tile + 3).to(tl.int64)
    count = tl.load(tile + 4)

    row = tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_DIM)
    is_row = row // GROUP < count
    is_column = column < DIM
    pair = first_pair + row // GROUP
    token = tl.load(rows + pair, is_row, 0).to(tl.int64)
    position = tl.load(positions + token, is_row, -1)
    own = kv_head * GROUP + row % GROUP
    is_query = is_row[:, None] & is_column[None, :]
    place_of = (token * (KV_HEADS * GROUP) + own)[:, None] * DIM + column[None, :]
    asked = tl.load(query + place_of, is_query, 0.0)

    # Behind the last position lies what may never have been written.
    end = tl.minimum(end, tl.max(position, 0) + 1)
    if HAS_WINDOW:
        oldest = tl.min(tl.where(is_row, position, 2147483647), 0) - window + 1
        begin = tl.maximum(begin, oldest // 16 * 16)
    best, total, sums = attend_keys(
        asked,
        position,
        keys,
        values,
        tables + request * table_width,
        kv_head,
        begin,
        end,
        end,
        scale,
        window,
        KV_HEADS=KV_HEADS,
        DIM=DIM,
        HAS_WINDOW=HAS_WINDOW,
        IS_EXACT=IS_EXACT,
        BLOCK_DIM=BLOCK_DIM,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_KEYS=BLOCK_KEYS,
    )

    left = pair * (KV_HEADS * GROUP) + own
    tl.store(parts + left[:, None] * DIM + column[None, :], sums, is_query)
    tl.store(stats + left * 2, best, is_row)
    tl.store(stats + left * 2 + 1, total, is_row)


@triton.jit
def _merge_pairs(
    out,
    lse,
    parts,
    stats,
    starts,
    by_row,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HAS_LSE: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK_DIM)
    is_column = column < DIM
    first = tl.load(starts + token)
    stop = tl.load(starts + token + 1)
    highest = tl.full([1], float("-inf"), tl.float32)
    for index in range(first, stop):
        left = tl.load(by_row + index).to(tl.int64) * HEADS + head
        highest = tl.maximum(highest, tl.load(stats + left * 2))
    anchor = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([BLOCK_DIM], tl.float32)
    for index in range(first, stop):
        left = tl.load(by_row + index).to(tl.int64) * HEADS + head
        share = tl.exp2(tl.load(stats + left * 2) - anchor)  # of a piece outside the window 0
        total += tl.load(stats + left * 2 + 1) * share
        sums += tl.load(parts + left * DIM + column, is_column, 0.0) * share
    target = token * HEADS + head
    total = tl.where(total > 0, total, 1.0)
    if HAS_LSE:
        tl.store(lse + target + tl.arange(0, 1), (highest + tl.log2(total)) * 0.6931471805599453)
    tl.store(out + target * DIM + column, (sums / total).to(out.dtype.element_ty), is_column)
