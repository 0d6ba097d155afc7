"""The best of many scores by unique keys, so that no tie is broken by chance.

A key is a score and a row id in 64 bits, larger for a higher score and, among equal ones, for a lower id. Any top-k of
unique numbers finds the same ones in the same order, on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows whose best score is kept beside them.
BLOCK_ROWS = 128
_LOW = 0xFFFF_FFFF

# (first row, stop) to scores [Q, blocks, BLOCK_ROWS] float32, minus infinity for what may not be found and beyond
# `stop`, and the best of each block [Q, blocks].
ScoreRows = Callable[[int, int], tuple[Tensor, Tensor]]


def search_in_parts(
    score_rows: ScoreRows, num_queries: int, num_rows: int, k: int, device: torch.device, max_scores: int
) -> tuple[Tensor, Tensor]:
    """See `masked_topk`: at most about `max_scores` scores at once, however many rows there are."""
    size = max(max_scores // max(num_queries, 1) // BLOCK_ROWS, 1) * BLOCK_ROWS
    best = torch.empty((num_queries, 0), dtype=torch.int64, device=device)
    for first in range(0, num_rows if num_queries else 0, size):
        keys = best_keys(*score_rows(first, min(first + size, num_rows)), k, first)
        best = torch.cat([best, keys], 1)
        best = best.topk(min(k, best.shape[1])).values
    scores, ids = unpack_keys(best)
    found = best.shape[1]
    all_scores = torch.full((num_queries, k), float("-inf"), device=device)
    all_ids = torch.full((num_queries, k), -1, dtype=torch.int64, device=device)
    all_scores[:, :found] = scores
    all_ids[:, :found] = ids.masked_fill(scores == float("-inf"), -1)
    return all_scores, all_ids


def best_keys(scores: Tensor, maxima: Tensor, k: int, first: int) -> Tensor:
    """Keys [Q, min(k, rows)] of the k best of scores [Q, blocks, BLOCK_ROWS], descending; ids count from `first`.

    A row among the k best lies in one of the k blocks with the best maxima, ties by lower block: each block before its
    own has a row that is better, or as good with a lower id. So the others are not looked at.
    """
    num_blocks, size = scores.shape[1:]
    places = torch.arange(size, device=scores.device)
    blocks = torch.arange(num_blocks, device=scores.device)
    if k < num_blocks:
        chosen = unpack_keys(pack_keys(maxima, blocks).topk(k).values)[1]  # [Q, k]
        scores = scores.gather(1, chosen[:, :, None].expand(-1, -1, size))
    else:
        chosen = blocks[None]
    ids = first + chosen[:, :, None] * size + places
    keys = pack_keys(scores, ids).flatten(1)
    return keys.topk(min(k, keys.shape[1])).values


def pack_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys of scores (float32, no NaN) with ids from 0 to 2**31 - 1, of shapes that broadcast."""
    ordered = _ordered((scores + 0.0).view(torch.int32))  # -0.0 and 0.0 are equal scores
    return (ordered.long() << 32) + (_LOW - ids)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores float32 and ids int64."""
    scores = _ordered((keys >> 32).int()).view(torch.float32)
    return scores, _LOW - (keys & _LOW)


def _ordered(bits: Tensor) -> Tensor:
    """Bits of floats as integers in the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)
