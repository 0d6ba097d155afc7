"""Masked search by torch's matrix products, part by part: a CPU, or a GPU without Triton."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.masked_topk.select import BLOCK_ROWS, search_in_parts

# Scores at once: 32 MB of them stay near a CPU's caches, and a GPU is slow to be asked often.
_MAX_SCORES_CPU, _MAX_SCORES_GPU = 1 << 23, 1 << 26


def masked_topk_torch(queries: Tensor, rows: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `masked_topk`."""
    allowed = None if mask is None else unpack_mask(mask, len(rows))
    num_queries = len(queries)

    def score_rows(first: int, stop: int) -> tuple[Tensor, Tensor]:
        scores = products(queries, rows[first:stop])
        if allowed is not None:
            scores.masked_fill_(~allowed[first:stop], float("-inf"))
        blocks = functional.pad(scores, (0, -(stop - first) % BLOCK_ROWS), value=float("-inf"))
        blocks = blocks.view(num_queries, -1, BLOCK_ROWS)
        return blocks, blocks.amax(-1)

    max_scores = _MAX_SCORES_GPU if rows.is_cuda else _MAX_SCORES_CPU
    return search_in_parts(score_rows, num_queries, len(rows), k, rows.device, max_scores)


def products(queries: Tensor, rows: Tensor) -> Tensor:
    """[Q, N] float32, summed in float32."""
    if rows.is_cuda and rows.dtype != torch.float32:
        # Products of half precision are exact in float32, and a float32 copy of the rows would be five times the bytes.
        return torch.mm(queries, rows.T, out_dtype=torch.float32)
    return queries.float() @ rows.float().T


def unpack_mask(mask: Tensor, num_rows: int) -> Tensor:
    """[N] bool of the words [ceil(N / 32)] int32."""
    bits = (mask[:, None] >> torch.arange(32, dtype=torch.int32, device=mask.device)) & 1
    return bits.flatten()[:num_rows].bool()
