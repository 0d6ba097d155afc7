"""A half-precision copy of vector rows that narrows an exact search: half the memory to read, and no result changed.

A row and its copy differ by a known amount, so an inner product by the copies is off by at most `bound`. Every row
that the copies place within twice that of the k-th best may belong to the k best; those alone are computed in full.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.rows import FIRST_CAPACITY, Keys, Mask
from kernels.row_scan import BLOCK_ROWS, row_dots, row_scan

# Scores of the copies that are held at once.
_MAX_SCORES = 16_000_000
# More candidates than this share of the rows (and than a few): computing all rows in full is as fast.
_MAX_SHARE, _FEW = 0.1, 4096
_EPSILON = 2.0**-24  # of one rounding in float32


class HalfRows:
    """The copies of rows [capacity, E]. Not thread-safe, as its owner."""

    def __init__(self, dim: int) -> None:
        self._halves = torch.empty((FIRST_CAPACITY, dim), dtype=torch.float16)
        self._max_error = 0.0  # of a row's distance to its copy; of rows that are gone as well
        self._max_norm = 0.0
        self._scan_error = 2 * (dim + 16) * _EPSILON  # of two sums in float32, as a share of the norms

    def grow(self, capacity: int, used: int) -> None:
        """Hold so many rows; the first `used` stay."""
        longer = torch.empty((capacity, self._halves.shape[1]), dtype=torch.float16)
        longer[:used] = self._halves[:used]
        self._halves = longer

    def write(self, first: int, vectors: Vectors) -> None:
        """Copy vectors [n, E] into the rows from `first` on."""
        if len(vectors) == 0:
            return
        full = torch.from_numpy(np.ascontiguousarray(vectors))
        halves = full.half()
        self._halves[first : first + len(vectors)] = halves
        errors = (full.double() - halves.double()).norm(dim=1)  # infinite beyond the range of half precision
        self._max_error = max(self._max_error, float(errors.max()))
        self._max_norm = max(self._max_norm, float(full.double().norm(dim=1).max()))

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows onto others."""
        self._halves[torch.tensor(targets, dtype=torch.long)] = self._halves[torch.tensor(sources, dtype=torch.long)]

    def bound(self, query: Vectors) -> float:
        """Most by which an inner product with `query` [E] may differ between rows and copies, both as computed."""
        norm = float(np.linalg.norm(query.astype(np.float64)))
        return norm * (self._max_error + self._scan_error * (self._max_norm + self._max_error)) + 1e-37

    def candidates(
        self, queries: Vectors, num_rows: int, num_results: int, is_allowed: Mask | None
    ) -> list[Keys] | None:
        """Per query the rows among which its best `num_results` of the first `num_rows` are, ties included.

        Returns: None where the copies do not narrow the search.
        """
        found: list[Keys] = []
        allowed = None if is_allowed is None else torch.from_numpy(is_allowed)
        piece = max(_MAX_SCORES // num_rows, 1)
        for first in range(0, len(queries), piece):
            part = np.ascontiguousarray(queries[first : first + piece])
            bounds = [self.bound(query) for query in part]
            if not np.isfinite(bounds).all():
                return None
            scores, maxima = row_scan(torch.from_numpy(part), self._halves[:num_rows], allowed)
            for mine, tops, bound in zip(scores.numpy(), maxima.numpy(), bounds, strict=True):
                rows = _within(mine, tops, num_results, 2 * bound)
                if len(rows) > max(_MAX_SHARE * num_rows, _FEW):
                    return None
                found.append(rows)
        return found


def exact_scores(query: Vectors, vectors: Vectors, rows: Keys) -> Vectors:
    """Inner products [c] of one query [E] with chosen rows of `vectors`; equal rows score equally."""
    chosen = row_dots(torch.from_numpy(query), torch.from_numpy(vectors), torch.from_numpy(rows))
    scores: Vectors = chosen.numpy()
    return scores


def _within(scores: Vectors, maxima: Vectors, num_results: int, margin: float) -> Keys:
    """Rows whose score is at most `margin` below the `num_results`-th best; `maxima` are those of blocks of rows."""
    rows: NDArray[np.int64] = np.arange(len(scores))
    if len(maxima) > num_results:
        # So many blocks have a best row at least this good, so the rows sought lie in blocks that are nearly as good.
        least = np.partition(maxima, -num_results)[-num_results]
        blocks = np.flatnonzero(maxima >= least - margin)
        rows = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        rows = rows[rows < len(scores)]
        scores = scores[rows]
    least = np.partition(scores, -num_results)[-num_results]
    near: Keys = rows[scores >= least - margin]
    return near
