"""Masked search in plain PyTorch and float32: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_topk_reference(
    queries: Tensor, rows: Tensor, k: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `masked_topk`; `allowed` [N] bool instead of its bits. All scores and one full sort at once."""
    scores = queries.float() @ rows.float().T  # [Q, N]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    scores, ids = scores.sort(dim=1, descending=True, stable=True)  # stable: equal scores stay in the order of rows
    missing = max(k - len(rows), 0)
    scores = torch.nn.functional.pad(scores, (0, missing), value=float("-inf"))[:, :k]
    ids = torch.nn.functional.pad(ids, (0, missing), value=-1)[:, :k]
    return scores, ids.masked_fill(scores == float("-inf"), -1)
