"""Rows in lists, of which a search reads those that it is told: the parts of FAISS's IVF, called one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.rows import Keys, Mask

# Its type stubs know neither the searches by lists nor their parameters.
_faiss: Any = faiss


class Lists:
    """Row numbers count from list to list. The numbers never change, so any thread may read them.

    FAISS does both halves of a search. With torch for the first one, the two's threads wait for each other's cores: 32
    questions over 100,000 rows take 31 ms instead of 3 with two threads on two cores.
    """

    def __init__(self, centres: Vectors, vectors: Vectors, order: Keys, starts: Keys, *, threads: int) -> None:
        """Row i is `vectors[order[i]]` of [n, E] float32.

        List l has centre `centres[l]` [E] and begins at row `starts[l]`; none is empty.
        """
        self._threads = threads
        self._starts = starts
        self.sizes: Keys = np.diff(starts, append=len(order))  # [L]
        dim = vectors.shape[1]
        self._centres = _faiss.IndexFlatIP(dim)
        self._centres.add(centres)
        self._index = _faiss.IndexIVFFlat(self._centres, dim, len(starts), faiss.METRIC_INNER_PRODUCT)
        for number, (first, size) in enumerate(zip(starts.tolist(), self.sizes.tolist(), strict=True)):
            # A list at once takes the memory it needs; added row by row it would take up to twice as much.
            rows = np.arange(first, first + size)
            block = np.ascontiguousarray(vectors[order[first : first + size]]).view(np.uint8)
            self._index.invlists.add_entries(number, size, _faiss.swig_ptr(rows), _faiss.swig_ptr(block.reshape(-1)))
        self._index.ntotal = len(order)
        self._index.is_trained = True

    @property
    def num_bytes(self) -> int:
        """Memory of the rows, their numbers and the centres."""
        row, centre = int(self._index.code_size) + 8, 4 * int(self._index.d)
        return row * int(self._index.ntotal) + centre * len(self.sizes)

    def rank(self, queries: Vectors, num_lists: int, is_wanted: Mask) -> Keys:
        """The nearest lists [Q, num_lists] among those wanted [L], of which there are as many; nearest first."""
        _faiss.omp_set_num_threads(self._threads)  # kept per calling thread
        parameters = None if is_wanted.all() else _faiss.SearchParameters(sel=_selector(is_wanted))
        _, ranked = self._centres.search(np.ascontiguousarray(queries), num_lists, params=parameters)
        lists: Keys = ranked
        return lists

    def read(self, queries: Vectors, lists: Keys, k: int, is_selected: Mask | None) -> tuple[Keys, Vectors]:
        """The rows [Q, k] with the largest inner products among those selected [n] in `lists` [Q, p], and their scores.

        -1 in `lists` is no list; in the rows, with -inf, that there are no more.
        """
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        asked = np.ascontiguousarray(queries)
        lists = np.ascontiguousarray(lists)
        nearness = np.zeros(lists.shape, np.float32)  # which only lists of residuals need
        selector = None if is_selected is None else _selector(is_selected)
        _faiss.omp_set_num_threads(self._threads)
        pointers = [_faiss.swig_ptr(array) for array in (lists, nearness, scores, rows)]
        parameters = _faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector)
        self._index.search_preassigned_c(len(asked), _faiss.swig_ptr(asked), k, *pointers, False, parameters)
        scores[rows < 0] = -np.inf
        return rows, scores

    def vectors(self, rows: Keys) -> Vectors:
        """The vectors [n, E] of `rows` [n], ascending."""
        found = np.empty((len(rows), self._index.d), np.float32)
        bounds = np.searchsorted(rows, np.append(self._starts, self._index.ntotal)).tolist()
        for number, (first, last) in enumerate(pairwise(bounds)):
            size = int(self.sizes[number]) * self._index.code_size
            codes = _faiss.rev_swig_ptr(self._index.invlists.get_codes(number), size)
            found[first:last] = codes.view(np.float32).reshape(-1, self._index.d)[
                rows[first:last] - self._starts[number]
            ]
        return found


def _selector(is_selected: Mask) -> Any:
    return _faiss.IDSelectorBitmap(np.packbits(is_selected, bitorder="little"))
