"""Scanning rows in plain torch, in float32: the definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def row_scan_reference(queries: Tensor, rows: Tensor, allowed: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """See row_scan."""
    scores = queries @ rows.float().T
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    padded = functional.pad(scores, (0, -len(rows) % block), value=-torch.inf)
    return scores, padded.view(len(queries), -1, block).amax(-1)
