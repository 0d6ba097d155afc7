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
    mask lets none of its tokens look, so the result is that of the examples one at a time.

    Args:
        query: [1, H, T, D]; key and value: [1, KV, T, D] of H = KV * groups heads.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None is all of them.
    Returns: [1, T, H, D], and None for the weights.
    Raises: ValueError without `packing`, where the row's bounds are unknown.
    """
    if packing is None or attention_mask is not None:
        raise ValueError(f"{ATTENTION} needs packing=... and no mask; generate within AdapterModel.generating()")
    groups = query.shape[1] // key.shape[1]
    queries, keys, values = (_side_by_side(tensor, packing) for tensor in (query, key, value))
    if groups > 1:
        keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (keys, values))
    banded = sliding_window is not None and sliding_window < packing.longest
    mask = _band(packing.longest, int(sliding_window or 0), query.device) if banded else None
    out = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling)
    rows = out.transpose(1, 2).flatten(0, 1).flatten(1)  # [N * longest, H * D]
    if packing.unpad is not None:
        rows = _Unpad.apply(rows, packing)
    return rows.view(1, -1, *query.shape[1::2]), None


def _side_by_side(tensor: Tensor, packing: Packing) -> Tensor:
    """[1, heads, T, D] to [N, heads, longest, D]."""
    _, heads, _, size = tensor.shape
    rows = tensor[0].transpose(0, 1).flatten(1)  # [T, heads * D]
    if packing.pad is not None:
        rows = _Pad.apply(rows, packing)
    return rows.view(packing.num_examples, packing.longest, heads, size).transpose(1, 2)


# Rows are copied both ways by plain gathers: the gradient that autograd derives for an index adds row by row.
class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return rows.index_select(0, packing.pad)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Padding has no gradient: no token looks at it, and what it looks at is dropped.
        return gradients[0].index_select(0, ctx.packing.unpad), None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return rows.index_select(0, packing.unpad)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        padded = gradients[0].new_zeros(packing.num_examples * packing.longest, gradients[0].shape[1])
        return padded.index_copy_(0, packing.unpad, gradients[0]), None


@lru_cache(maxsize=8)
def _band(length: int, window: int, device: torch.device) -> Tensor:
    """[length, length] bool: True where a query may look."""
    ages = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (ages >= 0) & (ages < window)


AttentionInterface.register(ATTENTION, packed_attention)
