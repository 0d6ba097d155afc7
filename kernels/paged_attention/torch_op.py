"""Paged attention by torch's own attention over gathered blocks: a GPU without Triton, a CPU without a compiler."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.paged_attention.plan import FixedPlan, PagedPlan


def paged_attention_torch(
    query: Tensor, keys: Tensor, values: Tensor, plan: PagedPlan, *, scale: float, window: int = 0
) -> Tensor:
    """See `paged_attention`."""
    num_single = next((i for i, n in enumerate(plan.num_new) if n != 1), len(plan.num_new))
    out = torch.empty_like(query)
    if num_single:
        out[:num_single] = _decode(query[:num_single], keys, values, plan, num_single, scale, window)
    start = num_single
    for index in range(num_single, len(plan.num_new)):
        stop = start + plan.num_new[index]
        if start < stop:
            out[start:stop] = _chunk(query[start:stop], keys, values, plan, index, scale, window)
        start = stop
    return out


def paged_attention_fixed(
    query: Tensor, keys: Tensor, values: Tensor, plan: FixedPlan, *, scale: float, window: int = 0
) -> Tensor:
    """See `paged_attention`: every token by itself, as far as its request could reach."""
    tables = plan.tables.index_select(0, plan.requests).long()
    attended = _attend(query, keys, values, tables, plan.positions[:, None] + 1, scale, window)
    return attended.masked_fill_((plan.positions < 0)[:, None, None], 0)


def _decode(
    query: Tensor, keys: Tensor, values: Tensor, plan: PagedPlan, count: int, scale: float, window: int
) -> Tensor:
    """The first `count` requests, one new token each. [S, H, D]"""
    contexts = torch.tensor(plan.contexts[:count], device=query.device)[:, None]
    num_blocks = -(-max(plan.contexts[:count]) // keys.shape[1])
    return _attend(query, keys, values, plan.tables[:count, :num_blocks].long(), contexts, scale, window)


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, index: Tensor, contexts: Tensor, scale: float, window: int
) -> Tensor:
    """Each of S tokens to the last of its `contexts` [S, 1] in the blocks `index` [S, blocks]. [S, H, D]"""
    kv_heads = keys.shape[2]
    # Query heads of one KV head stand as query positions: with one query token, torch's own grouping is 6 to 9 times
    # slower on a CPU.
    stacked = query.reshape(len(query), kv_heads, -1, query.shape[2])  # [S, KV heads, H / KV heads, D]
    key, value = (cache[index].flatten(1, 2).transpose(1, 2) for cache in (keys, values))  # [S, KV heads, L, D]
    position = torch.arange(key.shape[2], device=query.device)[None]
    visible = (position < contexts) & (position >= contexts - window if window else position >= 0)  # [S, L]
    # Slots that nobody wrote may hold anything, and 0 * NaN is NaN.
    value = value.masked_fill(~visible[:, None, :, None], 0)
    key = key.masked_fill(~visible[:, None, :, None], 0)
    attended = scaled_dot_product_attention(stacked, key, value, attn_mask=visible[:, None, None], scale=scale)
    return attended.flatten(1, 2)


def _chunk(
    query: Tensor, keys: Tensor, values: Tensor, plan: PagedPlan, index: int, scale: float, window: int
) -> Tensor:
    """Request `index` alone. [n, H, D]"""
    context, num_new = plan.contexts[index], plan.num_new[index]
    blocks = plan.tables[index, : -(-context // keys.shape[1])].long()
    key, value = (cache[blocks].flatten(0, 1)[:context].transpose(0, 1)[None] for cache in (keys, values))
    own = query.transpose(0, 1)[None]  # [1, H, n, D]
    position = torch.arange(context - num_new, context, device=query.device)[:, None]
    age = position - torch.arange(context, device=query.device)[None]
    visible = (age >= 0) & (age < window) if window else age >= 0
    attended = scaled_dot_product_attention(own, key, value, attn_mask=visible, scale=scale, enable_gqa=True)
    return attended[0].transpose(0, 1)
