"""Coding and scanning rows in plain torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# The inner product of codes with norms of at most this stays within 32 bits, as does every part of its sum.
MAX_NORM = 46_300
MAX_CODE = 32_767


def encode_rows_reference(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """See encode_rows."""
    wide = vectors.double()
    norms, largest = wide.norm(dim=1), wide.abs().amax(1)
    steps = torch.maximum(norms / MAX_NORM, largest / MAX_CODE)
    codes = (wide / steps.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).round()
    return codes.to(torch.int16), steps.float()


def row_scan_reference(
    queries: Tensor, query_scales: Tensor, rows: Tensor, row_scales: Tensor, allowed: Tensor | None, block: int
) -> tuple[Tensor, Tensor]:
    """See row_scan."""
    sums = (queries.double() @ rows.double().T).float()  # exact before the last rounding
    scores = sums * row_scales * query_scales[:, None]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    blocks = functional.pad(scores, (0, -len(rows) % block), value=-torch.inf).view(len(queries), -1, block)
    return blocks, blocks.amax(-1)
