"""Paged attention on a GPU: one launch for decodes, drafts and prompt chunks, read block by block where they lie.

A program has a tile of query tokens of one request, with all query heads of one KV head as its rows. Where there are
too few tiles to fill the device, several programs share a tile's keys and a second launch merges what they found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.paged_attention.plan import FixedPlan, PagedPlan, decode_rows
from kernels.paged_attention.triton_keys import attend_keys

_LOG2_E = 1.4426950408889634
# Programs that keep a large GPU busy, and the fewest keys that are worth a program of their own.
_ENOUGH_PROGRAMS = 256
_MIN_SPLIT_TOKENS = 128
_MAX_SPLITS = 16
_CHUNK_ROWS = 64


def paged_attention_triton(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: PagedPlan | FixedPlan,
    *,
    scale: float,
    window: int,
    lse: Tensor | None = None,
) -> Tensor:
    """See `paged_attention`."""
    tokens, heads, dim = query.shape
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    out = torch.empty_like(query)
    if tokens == 0:
        return out
    rows = decode_rows(group)
    if isinstance(plan, PagedPlan) and plan.is_shared:
        from kernels.paged_attention.triton_cascade import cascade_triton

        return cascade_triton(query, keys, values, plan, scale=scale, window=window, lse=lse)
    if isinstance(plan, FixedPlan):
        tiles, longest = plan.tiles, plan.longest
    else:
        rows = rows if max(plan.num_new) == 1 else max(rows, _CHUNK_ROWS)
        tiles, longest = plan.tiles(rows // group), max(plan.contexts)  # [n, 4]
    num_splits = _num_splits(len(tiles) * kv_heads, longest)
    block_dim = max(triton.next_power_of_2(dim), 16)
    parts = stats = out
    if num_splits > 1:
        parts = torch.empty((num_splits, tokens, heads, dim), dtype=torch.float32, device=query.device)
        stats = torch.empty((num_splits, tokens, heads, 2), dtype=torch.float32, device=query.device)
    _attend[len(tiles), kv_heads, num_splits](
        *(out, parts, stats, out if lse is None else lse, query, keys, values, plan.tables, tiles),
        *(scale * _LOG2_E, window, plan.tables.shape[1], tokens, num_splits),
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        IS_SPLIT=num_splits > 1,
        HAS_LSE=lse is not None,
        HAS_WINDOW=window > 0,
        IS_EXACT=query.dtype == torch.float32,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=rows,
        BLOCK_KEYS=max(min(64, 16384 // (block_dim * query.element_size())), 16),
        num_warps=4,
        num_stages=2,
    )
    if num_splits > 1:
        _merge[tokens, heads](
            *(out, parts, stats, out if lse is None else lse, tokens, num_splits),
            HEADS=heads,
            DIM=dim,
            HAS_LSE=lse is not None,
            BLOCK_SPLITS=_MAX_SPLITS,
            BLOCK_DIM=block_dim,
            num_warps=2,
        )
    return out


def _num_splits(num_programs: int, max_context: int) -> int:
    return max(min(-(-_ENOUGH_PROGRAMS // num_programs), max_context // _MIN_SPLIT_TOKENS, _MAX_SPLITS), 1)


# Triton compiles anew where a number becomes 1 or divisible by 16, for about a second: not for those of every step.
@triton.jit(do_not_specialize=["window", "table_width", "num_tokens", "num_splits"])
def _attend(
    out,
    parts,
    stats,
    lse,
    query,
    keys,
    values,
    tables,
    tiles,
    scale,
    window,
    table_width,
    num_tokens,
    num_splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_EXACT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    request = tl.load(tiles + tile * 4).to(tl.int64)
    first_token = tl.load(tiles + tile * 4 + 1).to(tl.int64)
    count = tl.load(tiles + tile * 4 + 2)
    first_position = tl.load(tiles + tile * 4 + 3)

    row = tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_DIM)
    is_row = row // GROUP < count
    is_column = column < DIM
    position = first_position + row // GROUP
    head = (first_token + row // GROUP) * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP
    is_query = is_row[:, None] & is_column[None, :]
    asked = tl.load(query + head[:, None] * DIM + column[None, :], is_query, 0.0)

    end = first_position + count
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // BLOCK_KEYS * BLOCK_KEYS
    each = tl.cdiv(tl.cdiv(end - begin, BLOCK_KEYS), num_splits) * BLOCK_KEYS
    begin += split * each
    best, total, sums = attend_keys(
        asked,
        position,
        keys,
        values,
        tables + request * table_width,
        kv_head,
        begin,
        tl.minimum(begin + each, end),
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

    if IS_SPLIT:
        part = split.to(tl.int64) * num_tokens * (KV_HEADS * GROUP) + head
        tl.store(parts + part[:, None] * DIM + column[None, :], sums, is_query)
        tl.store(stats + part * 2, best, is_row)
        tl.store(stats + part * 2 + 1, total, is_row)
    else:
        total = tl.where(total > 0, total, 1.0)  # a token of nobody, and rows without a token
        if HAS_LSE:  # minus infinity where nothing was seen, as `best` is
            tl.store(lse + head, (best + tl.log2(total)) * 0.6931471805599453, is_row)
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + head[:, None] * DIM + column[None, :], result, is_query)


@triton.jit(do_not_specialize=["num_tokens", "num_splits"])
def _merge(
    out,
    parts,
    stats,
    lse,
    num_tokens,
    num_splits,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HAS_LSE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    split = tl.arange(0, BLOCK_SPLITS).to(tl.int64)
    is_split = split < num_splits
    column = tl.arange(0, BLOCK_DIM)
    is_column = column < DIM
    part = split * num_tokens * HEADS + head
    best = tl.load(stats + part * 2, is_split, float("-inf"))
    # A split without keys has the best of -infinity, and a token of nobody has no other.
    highest = tl.max(best, 0)
    share = tl.exp2(best - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(tl.load(stats + part * 2 + 1, is_split, 0.0) * share, 0)
    total = tl.where(total > 0, total, 1.0)
    if HAS_LSE:
        tl.store(lse + head, (highest + tl.log2(total)) * 0.6931471805599453)
    sums = tl.load(parts + part[:, None] * DIM + column[None, :], is_split[:, None] & is_column[None, :], 0.0)
    merged = tl.sum(sums * share[:, None], 0) / total
    tl.store(out + head * DIM + column, merged.to(out.dtype.element_ty), is_column)
