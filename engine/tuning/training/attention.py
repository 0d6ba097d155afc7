"""Causal attention within each example of a packed row, registered with transformers under ATTENTION."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.tuning.training.packing import Packing

ATTENTION = "switchyard_packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a transformers decoder layer over a packed row; `packing` is passed to the model's forward.

    Examples are padded to the longest one for attention only. Padding lies after an example's end, where a causal
    mask lets none of its tokens look, and each example sees the shared tokens before its own, so the result is that
    of the examples one at a time.

    Args:
        query: [1, H, T, D]; key and value: [1, KV, T, D] of H = KV * groups heads.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None is all of them.
    Returns: [1, T, H, D], and None for the weights.
    Raises: ValueError without `packing`, where the row's bounds are unknown.
    """
    if packing is None or attention_mask is not None:
        raise ValueError(f"{ATTENTION} needs packing=... and no mask; generate within AdapterModel.generating()")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    shared = packing.num_shared
    queries, keys, values = (_side_by_side(tensor[0, :, shared:], packing) for tensor in (query, key, value))
    if shared:
        # [1, H, shared, D] before each example's own keys and values; its gradient is the sum over the examples.
        query, key, value = (tensor[:, :, :shared] for tensor in (query, key, value))
        keys, values = (
            torch.cat((head.expand(packing.num_examples, -1, -1, -1), own), dim=2)
            for head, own in ((key, keys), (value, values))
        )
    out = _causal(queries, keys, values, scaling, sliding_window)
    rows = out.transpose(1, 2).flatten(0, 1).flatten(1)  # [N * longest, H * D]
    if packing.unpad is not None:
        rows = _Unpad.apply(rows, packing.pad, packing.unpad)  # type: ignore[no-untyped-call]
    if shared:
        rows = torch.cat((_causal(query, key, value, scaling, sliding_window)[0].transpose(0, 1).flatten(1), rows))
    return rows.view(1, len(rows), query.shape[1], query.shape[3]), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """[N, H, queries, D], where the last query stands at the last key."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    window = num_keys if window is None else min(window, num_keys)
    is_plain = num_queries == num_keys == window
    mask = None if is_plain else _band(num_queries, num_keys, window, query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_plain, scale=scaling)


def _side_by_side(tensor: Tensor, packing: Packing) -> Tensor:
    """[heads, own tokens, D] to [N, heads, longest, D]."""
    heads, _, size = tensor.shape
    rows = tensor.transpose(0, 1).flatten(1)  # [own tokens, heads * D]
    if packing.pad is not None:
        rows = _Pad.apply(rows, packing.pad, packing.unpad)  # type: ignore[no-untyped-call]
    return rows.view(packing.num_examples, packing.longest, heads, size).transpose(1, 2)


# Rows are copied both ways by plain gathers: the gradient that autograd derives for an index adds row by row.
class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pad: Tensor, unpad: Tensor) -> Tensor:
        ctx.unpad = unpad
        return rows.index_select(0, pad)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # Padding has no gradient: no token looks at it, and what it looks at is dropped.
        return gradients[0].index_select(0, ctx.unpad), None, None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pad: Tensor, unpad: Tensor) -> Tensor:
        ctx.num_slots, ctx.unpad = len(pad), unpad
        return rows.index_select(0, unpad)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        padded = gradients[0].new_zeros(ctx.num_slots, gradients[0].shape[1])
        return padded.index_copy_(0, ctx.unpad, gradients[0]), None, None


@lru_cache(maxsize=8)
def _band(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """[queries, keys] bool: True where a query may look."""
    places = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    ages = places - torch.arange(num_keys, device=device)
    return (ages >= 0) & (ages < window)


AttentionInterface.register(ATTENTION, packed_attention)
