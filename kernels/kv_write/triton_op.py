"""Norm, rotation and scatter in one launch: a program for each head of each token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def kv_write_triton(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """See `kv_write`."""
    tokens, (kv_heads, dim) = len(qkv), keys.shape[2:]
    query = torch.empty((tokens, num_heads, dim), dtype=qkv.dtype, device=qkv.device)
    if tokens:
        has_norm = q_norm is not None
        _kv_write[tokens, num_heads + 2 * kv_heads](
            *(query, qkv, cos, sin, slots, keys, values),
            *(q_norm if has_norm else qkv, k_norm if has_norm else qkv, eps),
            HEADS=num_heads,
            KV_HEADS=kv_heads,
            HALF=dim // 2,
            HAS_NORM=has_norm,
            BLOCK=triton.next_power_of_2(dim // 2),
            num_warps=1,
        )
    return query


@triton.jit
def _kv_write(
    query,
    qkv,
    cos,
    sin,
    slots,
    keys,
    values,
    q_norm,
    k_norm,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < HALF
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF
    low = tl.load(source + column, inside, 0.0)
    high = tl.load(source + HALF + column, inside, 0.0)
    slot = tl.load(slots + token)
    if head < HEADS + KV_HEADS:
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        if HAS_NORM:
            scale = tl.rsqrt((tl.sum(wide_low * wide_low) + tl.sum(wide_high * wide_high)) / (2 * HALF) + eps)
            if head < HEADS:
                low_weight = tl.load(q_norm + column, inside, 0.0)
                high_weight = tl.load(q_norm + HALF + column, inside, 0.0)
            else:
                low_weight = tl.load(k_norm + column, inside, 0.0)
                high_weight = tl.load(k_norm + HALF + column, inside, 0.0)
            # Rounded where the definition rounds.
            wide_low = (wide_low * scale).to(low.dtype).to(tl.float32) * low_weight.to(tl.float32)
            wide_high = (wide_high * scale).to(low.dtype).to(tl.float32) * high_weight.to(tl.float32)
            wide_low, wide_high = wide_low.to(low.dtype).to(tl.float32), wide_high.to(low.dtype).to(tl.float32)
        c = tl.load(cos + token * HALF + column, inside, 0.0)
        s = tl.load(sin + token * HALF + column, inside, 0.0)
        low = (wide_low * c - wide_high * s).to(low.dtype)
        high = (wide_high * c + wide_low * s).to(high.dtype)
    if head < HEADS:
        target = query + (token * HEADS + head) * 2 * HALF
        tl.store(target + column, low, inside)
        tl.store(target + HALF + column, high, inside)
    elif slot >= 0:
        if head < HEADS + KV_HEADS:
            target = keys + (slot * KV_HEADS + head - HEADS) * 2 * HALF
        else:
            target = values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * 2 * HALF
        tl.store(target + column, low, inside)
        tl.store(target + HALF + column, high, inside)
