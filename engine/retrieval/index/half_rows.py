"""A copy of vector rows in 16 bits that narrows an exact search: half the memory to read, and no result changed.

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
from kernels.row_scan import BLOCK_ROWS, MAX_CODE_NORM, CodedRows, encode_rows, row_dots, row_scan

# Scores of the copies that are held at once.
_MAX_SCORES = 16_000_000
# More candidates than this share of the rows (and than a few): computing all rows in full is as fast.
_MAX_SHARE, _FEW = 0.1, 4096
_EPSILON = 2.0**-24  # of one rounding in float32
_LOWEST = np.finfo(np.float32).min  # of a score: what may not be found is below


class HalfRows:
    """The copies of rows [capacity, E]. Not thread-safe, as its owner."""

    def __init__(self, dim: int) -> None:
        self._rows = _room(FIRST_CAPACITY, dim)
        self._max_error = 0.0  # of a row's distance to its copy; of rows that are gone as well
        self._max_norm = 0.0
        self._scan_error = 2 * (dim + 16) * _EPSILON  # of two sums in float32, as a share of the norms

    def grow(self, capacity: int, used: int) -> None:
        """Hold so many rows; the first `used` stay."""
        longer = _room(capacity, self._rows.codes.shape[1])
        for new, old in zip(longer, self._rows, strict=True):
            new[:used] = old[:used]
        self._rows = longer

    def write(self, first: int, vectors: Vectors) -> None:
        """Copy vectors [n, E] into the rows from `first` on."""
        if len(vectors) == 0:
            return
        coded = encode_rows(torch.from_numpy(np.ascontiguousarray(vectors)))
        for held, new in zip(self._rows, coded, strict=True):
            held[first : first + len(vectors)] = new
        self._max_error = max(self._max_error, float(_distances(vectors, coded).max()))
        self._max_norm = max(self._max_norm, float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows onto others."""
        for held in self._rows:
            held[torch.tensor(targets, dtype=torch.long)] = held[torch.tensor(sources, dtype=torch.long)]

    def bounds(self, queries: Vectors) -> NDArray[np.float64]:
        """Most by which inner products with each of `queries` [Q, E] may differ between rows and copies, [Q].

        Both as computed, the queries in 16 bits as well for the copies.
        """
        return self._bounds(encode_rows(torch.from_numpy(np.ascontiguousarray(queries))))

    def candidates(
        self, queries: Vectors, num_rows: int, num_results: int, is_allowed: Mask | None
    ) -> list[Keys] | None:
        """Per query the rows among which its best `num_results` of the first `num_rows` are, ties included.

        Returns: None where the copies do not narrow the search.
        """
        found: list[Keys] = []
        rows = CodedRows(*(held[:num_rows] for held in self._rows))
        allowed = None if is_allowed is None else torch.from_numpy(is_allowed)
        most = max(_MAX_SHARE * num_rows, _FEW)
        piece = max(_MAX_SCORES // num_rows, 1)
        for first in range(0, len(queries), piece):
            coded = encode_rows(torch.from_numpy(np.ascontiguousarray(queries[first : first + piece])))
            scores, maxima = row_scan(coded, rows, allowed)
            near = _within(scores.numpy(), maxima.numpy(), num_results, 2 * self._bounds(coded))
            if any(len(mine) > most for mine in near):
                return None
            found += near
        return found

    def _bounds(self, coded: CodedRows) -> NDArray[np.float64]:
        # A query's norm is at most that of its codes, its distance to them half a step in each dimension and the
        # rounding of the step itself. A step of nearly 0 may have lost its last digits.
        steps = coded.scales.numpy() + 1e-37
        copy_norm = self._max_norm + self._max_error
        from_rows = MAX_CODE_NORM * (self._max_error + self._scan_error * copy_norm)
        from_query = (coded.codes.shape[1] ** 0.5 / 2 + 1) * copy_norm
        bounds: NDArray[np.float64] = steps * np.float64(from_rows + from_query) + 1e-37
        return bounds


def exact_scores(queries: Vectors, vectors: Vectors, chosen: Sequence[Keys]) -> tuple[Keys, Keys, Vectors]:
    """Inner products of queries [Q, E] with the rows of `vectors` that are `chosen` for each; equal rows score equally.

    Returns: query [c], row [c] and score [c] of all of them, query by query.
    """
    owners = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
    rows = np.concatenate(chosen)
    asked = torch.from_numpy(np.ascontiguousarray(queries))
    dots = row_dots(asked, torch.from_numpy(owners), torch.from_numpy(vectors), torch.from_numpy(rows))
    scores: Vectors = dots.numpy()
    return owners, rows, scores


def _within(scores: Vectors, maxima: Vectors, num_results: int, margins: NDArray[np.float64]) -> list[Keys]:
    """Per query the rows whose score is at most its margin below its `num_results`-th best.

    Args:
        scores: [Q, blocks, BLOCK_ROWS]; what may not be found is minus infinity.
        maxima: [Q, blocks], the best of each block.
    """
    num_queries, num_blocks = maxima.shape
    floors = np.full(num_queries, -np.inf, np.float32)
    if num_blocks > num_results:
        # So many blocks have a best row at least this good, so the rows sought are nearly as good.
        floors = _lowered(np.partition(maxima, -num_results, axis=1)[:, -num_results], margins)
    owners, blocks = np.nonzero(maxima >= floors[:, None])
    values = scores[owners, blocks]  # [pairs, BLOCK_ROWS]
    pairs, places = np.nonzero(values >= np.maximum(floors[owners], _LOWEST)[:, None])
    rows = blocks[pairs] * BLOCK_ROWS + places
    values = values[pairs, places]
    ends = np.searchsorted(owners[pairs], np.arange(1, num_queries))
    found: list[Keys] = []
    for mine, theirs, margin in zip(np.split(rows, ends), np.split(values, ends), margins, strict=True):
        least = np.partition(theirs, -num_results)[-num_results:][:1]
        found.append(mine[theirs >= _lowered(least, margin)])
    return found


def _lowered(scores: Vectors, margins: NDArray[np.float64] | float) -> Vectors:
    """`scores` less the margins, rounded down: in float32, or every comparison would widen all of the scores."""
    lowered: Vectors = np.nextafter((scores - margins).astype(np.float32), np.float32(-np.inf))
    return lowered


def _distances(full: Vectors, coded: CodedRows) -> NDArray[np.float64]:
    """Of vectors [n, E] to what their codes say: [n]."""
    steps = coded.scales.numpy().astype(np.float64)[:, None]
    distances: NDArray[np.float64] = np.linalg.norm(full - coded.codes.numpy() * steps, axis=1)
    return distances


def _room(capacity: int, dim: int) -> CodedRows:
    return CodedRows(torch.empty((capacity, dim), dtype=torch.int16), torch.empty(capacity))
