"""Norm, rotation and scatter in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.rms_norm.reference import rms_norm_reference
from kernels.rope.reference import rope_reference


def kv_write_reference(
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
    kv_heads, dim = keys.shape[2:]
    heads = qkv.view(len(qkv), num_heads + 2 * kv_heads, dim)
    query, key, value = torch.split(heads, [num_heads, kv_heads, kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        query, key = rms_norm_reference(query, q_norm, eps), rms_norm_reference(key, k_norm, eps)
    query, key = rope_reference(query, cos, sin), rope_reference(key, cos, sin)
    kept = slots >= 0
    keys.flatten(0, 1)[slots[kept]] = key[kept]
    values.flatten(0, 1)[slots[kept]] = value[kept]
    return query.contiguous()
