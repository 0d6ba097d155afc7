"""The loop over keys that all of paged attention shares: scores with a running maximum and sum (online softmax)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_keys(
    asked,
    position,
    keys,
    values,
    table,
    kv_head,
    begin,
    stop,
    end,
    scale,
    window,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_EXACT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Rows `asked` [BLOCK_ROWS, BLOCK_DIM] at `position` [BLOCK_ROWS], to one request's keys from `begin` to `stop`.

    `table` points to the request's blocks, `end` is behind its last key; steps of BLOCK_KEYS may reach beyond `stop`,
    never beyond `end`. Returns of each row its highest score, the sum of 2 ** (score - highest), and the values summed
    with those weights: float32; minus infinity, 0 and 0 where it has seen no key.
    """
    column = tl.arange(0, BLOCK_DIM)
    is_column = column < DIM
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    for start in range(begin, stop, BLOCK_KEYS):
        place = start + tl.arange(0, BLOCK_KEYS)
        is_key = place < end
        block = tl.load(table + place // 16, is_key, 0).to(tl.int64)
        offset = ((block * 16 + place % 16) * KV_HEADS + kv_head) * DIM
        # What lies behind the end may never have been written.
        is_wanted = is_key[:, None] & is_column[None, :]
        key = tl.load(keys + offset[:, None] + column[None, :], is_wanted, 0.0)
        value = tl.load(values + offset[:, None] + column[None, :], is_wanted, 0.0)
        if IS_EXACT:
            scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        else:
            scores = tl.dot(asked, tl.trans(key)) * scale
        is_visible = is_key[None, :] & (place[None, :] <= position[:, None])
        if HAS_WINDOW:
            is_visible = is_visible & (place[None, :] > position[:, None] - window)
        scores = tl.where(is_visible, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp2(scores - anchor[:, None])
        fade = tl.exp2(best - anchor)
        total = total * fade + tl.sum(weights, 1)
        if IS_EXACT:
            sums = sums * fade[:, None] + tl.dot(weights, value, input_precision="ieee")
        else:
            sums = sums * fade[:, None] + tl.dot(weights.to(value.dtype), value)
        best = higher
    return best, total, sums
