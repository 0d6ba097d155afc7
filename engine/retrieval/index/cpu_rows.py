"""Vector rows in float32 on a CPU.

A copy in 16 bits narrows the search where its kernel can be compiled. Else FAISS searches, and many queries at
once, or a filter, are matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import torch
from torch import Tensor

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.half_rows import HalfRows, exact_scores
from engine.retrieval.index.products import best_products, with_ties
from engine.retrieval.index.rows import FIRST_CAPACITY, Keys, Mask, VectorRows, grown
from kernels.native import absence
from kernels.row_scan import MAX_DIM

# More queries than this are faster as one matrix product: 3 times for 32 queries over 100,000 rows (2 cores, AVX2).
_MAX_FAISS_QUERIES = 4
# Rows whose scores are held at once by a filtered search.
_BLOCK_ROWS = 16_384
# Below this share of allowed rows it is cheaper to copy them than to score those beside them.
_GATHER_SHARE = 0.25


class CpuRows(VectorRows):
    """See VectorRows."""

    def __init__(self, dim: int, *, threads: int = 1, is_halved: bool = True) -> None:
        """`threads` of a search; `is_halved` keeps a copy in 16 bits where there is a kernel to scan it: searches
        become several times faster, and a row larger by half.
        """
        super().__init__(dim)
        self._threads = threads
        self._halves = HalfRows(dim) if is_halved and dim <= MAX_DIM and absence() is None else None
        self._vectors: Vectors = np.empty((FIRST_CAPACITY, dim), np.float32)  # [capacity, E]

    @property
    def vectors(self) -> Vectors:
        """The vectors [len, E] in the order of the rows: a view that the next `remove` may change."""
        return self._vectors[: len(self)]

    def _grow(self, capacity: int) -> None:
        self._vectors = grown(self._vectors, capacity, len(self))
        if self._halves is not None:
            self._halves.grow(capacity, len(self))

    def _write(self, first: int, vectors: Vectors) -> None:
        self._vectors[first : first + len(vectors)] = vectors
        if self._halves is not None:
            self._halves.write(first, vectors)

    def _move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._vectors[targets] = self._vectors[sources]
        if self._halves is not None:
            self._halves.move(sources, targets)

    def _narrowed(self, queries: Vectors, num_results: int, is_allowed: Mask | None) -> tuple[Keys, Vectors] | None:
        """The best rows by way of the copy in 16 bits; None where it does not help."""
        if self._halves is None:
            return None
        if torch.get_num_threads() != self._threads:  # OpenMP keeps the number for each calling thread
            torch.set_num_threads(self._threads)
        candidates = self._halves.candidates(queries, len(self), num_results, is_allowed)
        if candidates is None:
            return None
        owners, rows, scores = exact_scores(queries, self.vectors, candidates)
        order = np.lexsort((self._keys[rows], -scores, owners))
        firsts = np.searchsorted(owners, np.arange(len(queries)))
        best = order[firsts[:, None] + np.arange(num_results)]  # [Q, num_results]
        return rows[best], scores[best]

    def _nearest(self, queries: Vectors, num_results: int) -> tuple[Keys, Vectors]:
        narrowed = self._narrowed(queries, num_results, None)
        if narrowed is not None:
            return narrowed
        stored = self._vectors[: len(self)]

        def search(k: int) -> tuple[Tensor, Tensor]:
            if len(queries) > _MAX_FAISS_QUERIES:
                return best_products(torch.from_numpy(queries), torch.from_numpy(stored), k)
            # OpenMP keeps the number of threads per calling thread, so setting it once at start would not do.
            faiss.omp_set_num_threads(self._threads)
            scores, rows = faiss.knn(queries, stored, k, metric=faiss.METRIC_INNER_PRODUCT)
            return torch.from_numpy(scores), torch.from_numpy(rows)

        scores, rows = with_ties(search, len(self), num_results)
        return rows.numpy(), scores.numpy()

    def _nearest_allowed(self, queries: Vectors, num_results: int, is_allowed: Mask) -> tuple[Keys, Vectors]:
        if is_allowed.mean() >= _GATHER_SHARE:
            narrowed = self._narrowed(queries, num_results, is_allowed)
            if narrowed is not None:
                return narrowed
        # Each block of rows is scored, and its best join those of the blocks before: faiss.knn takes no selection.
        best_rows = np.empty((len(queries), 0), np.int64)
        best_scores = np.empty((len(queries), 0), np.float32)
        for first in range(0, len(self), _BLOCK_ROWS):
            block = is_allowed[first : first + _BLOCK_ROWS]
            chosen = np.flatnonzero(block)
            if len(chosen) == 0:
                continue
            if len(chosen) < _GATHER_SHARE * len(block):
                rows = first + chosen
                scores = _products(queries, self._vectors[rows])  # [Q, chosen]
            else:
                rows = first + np.arange(len(block))
                scores = _products(queries, self._vectors[first : first + len(block)])
                scores[:, ~block] = -np.inf
            candidates = np.concatenate([best_rows, np.broadcast_to(rows, scores.shape)], axis=1)
            best_scores = np.concatenate([best_scores, scores], axis=1)
            best_rows, best_scores = self._best_with_ties(candidates, best_scores, num_results)
        return best_rows, best_scores


def _products(queries: Vectors, stored: Vectors) -> Vectors:
    # By torch, whose threads are the encoder's; numpy's would be a second set.
    products: Vectors = (torch.from_numpy(queries) @ torch.from_numpy(stored).T).numpy()
    return products
