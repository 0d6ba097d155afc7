"""Chunk attention by torch: flash attention without a mask in two parts, merged; with a mask under a window."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def chunk_attention_torch(
    query: Tensor, keys: Tensor, values: Tensor, blocks: NDArray[np.int32], context: int, scale: float, window: int
) -> Tensor:
    """See `chunk_attention`."""
    chosen = _as_slice(blocks)
    key, value = (cache[chosen].flatten(0, 1)[:context].transpose(0, 1)[None] for cache in (keys, values))
    part = query.transpose(0, 1)[None]  # [1, H, n, D]
    return _attend(part, key, value, context - len(query), scale, window)[0].transpose(0, 1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, num_before: int, scale: float, window: int) -> Tensor:
    """[1, H, n, D] over [1, KV heads, L, D], causal at the end of L."""
    length = keys.shape[2]
    if 0 < window < length:
        mask = _window_mask(query.shape[2], length, window)
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
        )
    own, own_lse = _flash(query, keys[:, :, num_before:], values[:, :, num_before:], True, scale)
    if num_before == 0:
        return own
    # Two calls without a mask and a merge are exact, and cheaper than one call with a mask.
    before, before_lse = _flash(query, keys[:, :, :num_before], values[:, :, :num_before], False, scale)
    weight = torch.sigmoid(before_lse - own_lse).unsqueeze(-1)  # softmax over the two parts
    return torch.lerp(own.float(), before.float(), weight).to(own.dtype)


def _flash(query: Tensor, keys: Tensor, values: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output [1, H, n, D] and log-sum-exp [1, H, n] float32. Grouped query heads and strided views are fine."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, is_causal, scale=scale
    )
    return output, lse.float()


def _as_slice(blocks: NDArray[np.int32]) -> slice | Tensor:
    """Neighbouring blocks as a slice, which is read without a copy."""
    first, last = int(blocks[0]), int(blocks[-1])
    if np.array_equal(blocks, np.arange(first, last + 1)):
        return slice(first, last + 1)
    return torch.from_numpy(blocks)


def _window_mask(num_new: int, length: int, window: int) -> Tensor:
    """[n, L] bool: key j is visible to the query at position i if j <= i and i - j < window."""
    query = torch.arange(length - num_new, length)[:, None]
    key = torch.arange(length)[None]
    return (key <= query) & (query - key < window)
