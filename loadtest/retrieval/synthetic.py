"""Rows for comparing indexes: points of unit length around random centres."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIM = 384
_BLOCK_ROWS = 1 << 18
# Length of the step away from a centre of length 1: rows of one cluster have cosines of about 0.6.
_SPREAD = 0.8


def clustered_rows(
    num_rows: int, num_queries: int, *, dim: int = DIM, seed: int = 0, device: str = "cpu", dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows [N, E] of `dtype` and queries [Q, E] float32 from the same sqrt(N) Gaussian clusters, L2-normalised."""
    drawn = torch.Generator(device).manual_seed(seed)
    centres = _unit(torch.randn(math.isqrt(num_rows), dim, generator=drawn, device=device))

    def points(number: int) -> Tensor:
        cluster = torch.randint(len(centres), (number,), generator=drawn, device=device)
        step = torch.randn(number, dim, generator=drawn, device=device) * (_SPREAD / math.sqrt(dim))
        return _unit(centres[cluster] + step)

    rows = torch.empty(num_rows, dim, dtype=dtype, device=device)
    for first in range(0, num_rows, _BLOCK_ROWS):
        block = rows[first : first + _BLOCK_ROWS]
        block.copy_(points(len(block)))
    return rows, points(num_queries)


def size_name(number: int) -> str:
    """10k, 1M, ...; the number itself where it is no round one."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
