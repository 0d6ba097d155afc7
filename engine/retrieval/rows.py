"""The vector rows: exact inner-product search over one array that grows and shrinks in O(batch)."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidRequest
from engine.retrieval.encoding import Vectors

Keys = NDArray[np.int64]

_FIRST_CAPACITY = 256
_GROWTH = 1.5
# With components below this no inner product of float32 vectors overflows, so no score is infinite or NaN.
_MAX_COMPONENT = 1e15


class VectorRows:
    """Rows of E float32 numbers, each under a unique key. Not thread-safe: the owner holds a lock."""

    def __init__(self, dim: int, *, threads: int = 1) -> None:
        self._dim = dim
        self._threads = threads
        self._vectors: Vectors = np.empty((_FIRST_CAPACITY, dim), np.float32)  # [capacity, E]
        self._keys: Keys = np.empty(_FIRST_CAPACITY, np.int64)
        self._row_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def reserve(self, num_more: int) -> None:
        """Make room, so that the next `append` of as many rows cannot run out of memory."""
        needed = len(self) + num_more
        if needed <= len(self._keys):
            return
        capacity = max(needed, int(len(self._keys) * _GROWTH))
        vectors, keys = np.empty((capacity, self._dim), np.float32), np.empty(capacity, np.int64)
        vectors[: len(self)], keys[: len(self)] = self._vectors[: len(self)], self._keys[: len(self)]
        self._vectors, self._keys = vectors, keys

    def append(self, keys: Keys, vectors: Vectors) -> None:
        """Add rows: keys [n] int64 that are not there yet, vectors [n, E] float32.

        Raises: InvalidRequest for vectors that are not finite or of another size; ValueError for known keys.
        """
        check_vectors(vectors, self._dim)
        if len(keys) != len(vectors) or len(set(keys.tolist())) != len(keys):
            raise ValueError(f"{len(vectors)} rows need as many distinct keys, got {len(keys)}")
        known = self._row_of.keys() & set(keys.tolist())
        if known:
            raise ValueError(f"keys {sorted(known)[:5]} have rows already")
        self.reserve(len(keys))
        first = len(self)
        self._vectors[first : first + len(keys)] = vectors
        self._keys[first : first + len(keys)] = keys
        self._row_of.update((key, first + row) for row, key in enumerate(keys.tolist()))

    def remove(self, keys: Sequence[int]) -> None:
        """Drop rows; the last rows move into the holes. Raises: KeyError for a key without a row, before any change."""
        removed = {self._row_of[key] for key in keys}
        kept = len(self) - len(removed)
        holes = sorted(row for row in removed if row < kept)
        moved = [row for row in range(kept, len(self)) if row not in removed]
        self._vectors[holes] = self._vectors[moved]
        self._keys[holes] = self._keys[moved]
        for key in keys:
            self._row_of.pop(key, None)
        self._row_of.update(zip(self._keys[holes].tolist(), holes, strict=True))

    def search(self, queries: Vectors, k: int) -> tuple[Keys, Vectors]:
        """The rows with the largest inner products, best first, ties by key.

        Args:
            queries: [Q, E] float32.
            k: most rows per query, at least 1.
        Returns: keys [Q, K] int64 and scores [Q, K] float32 with K = min(k, rows).
        Raises: InvalidRequest for queries that are not finite or of another size, or k < 1.
        """
        check_vectors(queries, self._dim)
        if k < 1:
            raise InvalidRequest(f"k={k} is too small; ask for 1 passage or more.", param="k")
        num_rows, num_results = len(self), min(k, len(self))
        if num_results == 0 or len(queries) == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        # OpenMP keeps the number of threads per calling thread, so setting it once at start would not do.
        faiss.omp_set_num_threads(self._threads)
        num_fetched = min(num_results + 1, num_rows)
        while True:
            scores, rows = faiss.knn(queries, self._vectors[:num_rows], num_fetched, metric=faiss.METRIC_INNER_PRODUCT)
            # A tie across the cut would be broken by row numbers, which change as rows move.
            if num_fetched == num_rows or (scores[:, -1] < scores[:, num_results - 1]).all():
                break
            num_fetched = min(2 * num_fetched, num_rows)
        keys = self._keys[rows]
        order = np.lexsort((keys, -scores), axis=-1)[:, :num_results]
        return np.take_along_axis(keys, order, axis=-1), np.take_along_axis(scores, order, axis=-1)


def check_vectors(vectors: Vectors, dim: int) -> None:
    """Raise InvalidRequest unless `vectors` is [n, dim] float32 and every component is a number of sane size."""
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32:
        raise InvalidRequest(
            f"vectors of shape {list(vectors.shape)} and type {vectors.dtype} do not fit; expected [n, {dim}] float32."
        )
    # `not <=` rather than `>`: NaN compares false with everything.
    if not (np.abs(vectors) <= _MAX_COMPONENT).all():
        raise InvalidRequest(
            f"a vector holds NaN, infinity or a component above {_MAX_COMPONENT:.0e}; the encoder's output is broken."
        )
