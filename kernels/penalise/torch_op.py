"""Penalties by torch operations: the logits of all seen tokens are gathered, changed and put back."""

from __future__ import annotations

import torch
from torch import Tensor


def penalise_torch(logits: Tensor, seen: Tensor, strengths: Tensor) -> None:
    """See `penalise`."""
    rows, token_ids, counts = seen[:, seen[0] >= 0].long()
    repetition, presence, frequency = strengths[:, rows]
    values = logits[rows, token_ids].float()
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= torch.where(counts > 0, presence + frequency * counts, 0.0)
    logits[rows, token_ids] = values.to(logits.dtype)
