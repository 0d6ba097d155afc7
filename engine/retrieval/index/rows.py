"""The vector rows: exact inner-product search over one array that grows and shrinks in O(batch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidRequest
from engine.retrieval.encoding.protocol import Vectors

Keys = NDArray[np.int64]
Slots = NDArray[np.int32]
Mask = NDArray[np.bool_]
_Number = TypeVar("_Number", bound=np.generic)

FIRST_CAPACITY = 256
_GROWTH = 1.5
# With components below this no inner product of float32 vectors overflows, so no score is infinite or NaN.
_MAX_COMPONENT = 1e15


class Rows(Protocol):
    """What a collection asks of its vector rows; see VectorRows, which says what the calls mean."""

    def __len__(self) -> int: ...

    def reserve(self, num_more: int) -> None: ...

    def append(self, keys: Keys, vectors: Vectors, slots: Slots | None = None) -> None: ...

    def remove(self, keys: Sequence[int]) -> None: ...

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Keys, Vectors]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """Rows as of one moment, for another thread: keys [n], slots [n], and `read` for their vectors [n, E] float32."""

    keys: Keys
    slots: Slots
    read: Callable[[], Vectors]


class VectorRows(ABC):
    """Rows of E numbers, each under a unique key and in its document's slot, by which filters choose.

    The books are kept here; where the numbers lie and how they are searched is the subclass's. Rows 0 to len - 1 are
    in use, whatever was removed. Not thread-safe: the owner holds a lock.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._keys: Keys = np.empty(FIRST_CAPACITY, np.int64)
        self._slots: Slots = np.empty(FIRST_CAPACITY, np.int32)
        self._row_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def held(self, keys: Iterable[int]) -> set[int]:
        """Those of `keys` that have a row."""
        return self._row_of.keys() & set(keys)

    def books(self) -> tuple[Keys, Slots]:
        """Copies of the keys [len] and slots [len] of all rows, in the order of the rows."""
        return self._keys[: len(self)].copy(), self._slots[: len(self)].copy()

    def set_slot(self, keys: Iterable[int], slot: int) -> None:
        """Put the rows of `keys`, all of which are there, into another slot."""
        self._slots[[self._row_of[key] for key in keys]] = slot

    def reserve(self, num_more: int) -> None:
        """Make room, so that the next `append` of as many rows cannot run out of memory."""
        needed = len(self) + num_more
        if needed <= len(self._keys):
            return
        capacity = max(needed, int(len(self._keys) * _GROWTH))
        self._grow(capacity)
        self._keys = grown(self._keys, capacity, len(self))
        self._slots = grown(self._slots, capacity, len(self))

    def append(self, keys: Keys, vectors: Vectors, slots: Slots | None = None) -> None:
        """Add rows: keys [n] int64 that are not there yet, vectors [n, E] float32, slots [n] int32 (default: all 0).

        Raises: InvalidRequest for vectors that are not finite or of another size; ValueError for known keys.
        """
        check_vectors(vectors, self._dim)
        if len(keys) != len(vectors) or len(set(keys.tolist())) != len(keys):
            raise ValueError(f"{len(vectors)} rows need as many distinct keys, got {len(keys)}")
        known = self.held(keys.tolist())
        if known:
            raise ValueError(f"keys {sorted(known)[:5]} have rows already")
        self.reserve(len(keys))
        first = len(self)
        self._write(first, vectors)
        self._keys[first : first + len(keys)] = keys
        self._slots[first : first + len(keys)] = 0 if slots is None else slots
        self._row_of.update((key, first + row) for row, key in enumerate(keys.tolist()))

    def remove(self, keys: Sequence[int]) -> None:
        """Drop rows; the last rows move into the holes. Raises: KeyError for a key without a row, before any change."""
        removed = {self._row_of[key] for key in keys}
        kept = len(self) - len(removed)
        holes = sorted(row for row in removed if row < kept)
        moved = [row for row in range(kept, len(self)) if row not in removed]
        self._move(moved, holes)
        self._keys[holes] = self._keys[moved]
        self._slots[holes] = self._slots[moved]
        for key in keys:
            self._row_of.pop(key, None)
        self._row_of.update(zip(self._keys[holes].tolist(), holes, strict=True))

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Keys, Vectors]:
        """The rows with the largest inner products, best first, ties by key.

        Args:
            queries: [Q, E] float32.
            k: most rows per query, at least 1.
            allowed: by slot, whether its rows may be returned; None allows all.
        Returns: keys [Q, K] int64 and scores [Q, K] float32 with K = min(k, allowed rows).
        Raises: InvalidRequest for queries that are not finite or of another size, or k < 1.
        """
        check_vectors(queries, self._dim)
        if k < 1:
            raise InvalidRequest(f"k={k} is too small; ask for 1 passage or more.", param="k")
        is_allowed = None if allowed is None else allowed[self._slots[: len(self)]]
        num_rows = len(self) if is_allowed is None else int(is_allowed.sum())
        num_results = min(k, num_rows)
        if num_results == 0 or len(queries) == 0:
            return empty_results(len(queries))
        if is_allowed is None:
            rows, scores = self._nearest(queries, num_results)
        else:
            rows, scores = self._nearest_allowed(queries, num_results, is_allowed)
        keys = self._keys[rows]
        order = np.lexsort((keys, -scores), axis=-1)[:, :num_results]
        return np.take_along_axis(keys, order, axis=-1), np.take_along_axis(scores, order, axis=-1)

    @abstractmethod
    def _grow(self, capacity: int) -> None:
        """Hold so many vectors; those of the rows in use stay."""

    @abstractmethod
    def _write(self, first: int, vectors: Vectors) -> None:
        """Put vectors [n, E] into the rows from `first` on."""

    @abstractmethod
    def _move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy vectors from rows to others, of which none is a source."""

    @abstractmethod
    def _nearest(self, queries: Vectors, num_results: int) -> tuple[Keys, Vectors]:
        """Rows [Q, n] and scores, n >= num_results: the best of all, and every other that ties with the last."""

    @abstractmethod
    def _nearest_allowed(self, queries: Vectors, num_results: int, is_allowed: Mask) -> tuple[Keys, Vectors]:
        """As `_nearest` among the rows that are allowed [len] alone, of which there are at least num_results.

        What is not allowed never enters the ranking, so nothing is filtered afterwards.
        """

    def _best_with_ties(self, rows: Keys, scores: Vectors, num_results: int) -> tuple[Keys, Vectors]:
        """The best `num_results` of candidates [Q, n], ties by key."""
        if scores.shape[1] <= num_results:
            return rows, scores
        cut = -np.partition(-scores, num_results - 1, axis=1)[:, num_results - 1]  # [Q]
        kept = np.empty((len(scores), num_results), np.intp)
        for query in range(len(scores)):
            columns = np.flatnonzero(scores[query] >= cut[query])
            order = np.lexsort((self._keys[rows[query, columns]], -scores[query, columns]))
            kept[query] = columns[order[:num_results]]
        return np.take_along_axis(rows, kept, axis=1), np.take_along_axis(scores, kept, axis=1)


def empty_results(num_queries: int) -> tuple[Keys, Vectors]:
    """What a search among no rows finds: keys [Q, 0] and scores [Q, 0]."""
    return np.empty((num_queries, 0), np.int64), np.empty((num_queries, 0), np.float32)


def grown(array: NDArray[_Number], capacity: int, used: int) -> NDArray[_Number]:
    """A longer array whose first `used` entries are `array`'s."""
    longer = np.empty((capacity, *array.shape[1:]), array.dtype)
    longer[:used] = array[:used]
    return longer


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
