"""Paged attention in plain PyTorch and float32: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.paged_attention.plan import PagedPlan


def paged_attention_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: PagedPlan,
    *,
    scale: float,
    window: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """See `paged_attention`; the result is float32."""
    repeat = query.shape[1] // keys.shape[2]
    parts, logarithms = [], []
    queries = torch.split(query.float(), list(plan.num_new))
    for part, context, table in zip(queries, plan.contexts, plan.tables, strict=True):
        key, value = (
            cache[table.long()].flatten(0, 1)[:context].float().repeat_interleave(repeat, dim=1)  # [L, H, D]
            for cache in (keys, values)
        )
        scores = torch.einsum("qhd,khd->hqk", part, key) * scale
        position = torch.arange(context - len(part), context, device=query.device)[:, None]
        age = position - torch.arange(context, device=query.device)[None]  # [n, L]
        hidden = (age < 0) | (age >= window) if window else age < 0
        scores = scores.masked_fill(hidden, float("-inf"))
        weights = scores.softmax(-1)
        logarithms.append(scores.logsumexp(-1).T)  # [n, H]
        parts.append(torch.einsum("hqk,khd->qhd", weights, value))
    if lse is not None:
        lse.copy_(torch.cat(logarithms))
    return torch.cat(parts)
