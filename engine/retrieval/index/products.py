"""Exact search by matrix products, for many queries at once or where FAISS has no kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows that are scored at once, in float32; on a GPU as many as make so many scores, for it is slow to be asked often.
_TILE_ROWS = 65_536
_TILE_SCORES = 1 << 27

# (k) to scores [Q, k] descending and rows [Q, k].
Search = Callable[[int], tuple[Tensor, Tensor]]


def best_products(queries: Tensor, stored: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [Q, k] float32, descending, and rows: tile by tile, so that memory does not grow with the rows.

    Args:
        queries: [Q, E] of any float dtype.
        stored: [n, E] on the same device.
        k: at most n.
    """
    best = torch.empty((len(queries), 0), device=stored.device)
    rows = torch.empty((len(queries), 0), dtype=torch.long, device=stored.device)
    num_rows = max(_TILE_ROWS, _TILE_SCORES // max(len(queries), 1)) if stored.is_cuda else _TILE_ROWS
    for first in range(0, len(stored), num_rows):
        tile = stored[first : first + num_rows]
        scores, found = _products(queries, tile).topk(min(k, len(tile)))
        best, order = torch.cat([best, scores], 1).topk(min(k, best.shape[1] + scores.shape[1]))
        rows = torch.cat([rows, found + first], 1).gather(1, order)
    return best, rows


def _products(queries: Tensor, tile: Tensor) -> Tensor:
    """[Q, n] float32, summed in float32."""
    if tile.is_cuda and tile.dtype != torch.float32 and queries.dtype == tile.dtype:
        # Products of half precision are exact in float32, and a float32 copy of the rows would be five times the bytes.
        return torch.mm(queries, tile.T, out_dtype=torch.float32)
    return queries.float() @ tile.float().T


def with_ties(search: Search, num_rows: int, num_results: int) -> tuple[Tensor, Tensor]:
    """The best `num_results` and every other row that ties with the last of them, for each query.

    A tie across the cut would be broken by row numbers, which change as rows move.
    """
    num_fetched = min(num_results + 1, num_rows)
    while True:
        scores, rows = search(num_fetched)
        if num_fetched == num_rows or bool((scores[:, -1] < scores[:, num_results - 1]).all()):
            return scores, rows
        num_fetched = min(2 * num_fetched, num_rows)
