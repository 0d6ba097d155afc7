"""A frozen shard: rows in lists of near ones (IVF), of which a search reads some; rows that are removed are masked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.lists import Lists
from engine.retrieval.index.rows import Keys, Mask, Part, Slots, empty_results

# Among so few rows every list that holds one is read: 14 ms for one question and 10,000 rows of a million, on one core.
_EXACT_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Reach:
    """How many lists a search for at most `k` rows reads, and the recall@k that was measured with so many."""

    k: int
    nprobe: int
    recall: float


class Shard:
    """Not thread-safe, but what `part` returns may be read by another thread.

    The float32 rows lie in the lists alone, 4 * E + 33 bytes a row. A flat copy for exact searches would double that
    and is not needed: a search that reads every list is exact.
    """

    def __init__(
        self, centres: Vectors, starts: Keys, keys: Keys, slots: Slots, vectors: Vectors, order: Keys, *, threads: int
    ) -> None:
        """Row i is `order[i]` of `keys` [n], `slots` [n] and `vectors` [n, E] float32; `threads` are those of a search.

        List l has centre `centres[l]` [E] and begins at row `starts[l]`; none is empty.
        """
        self._lists = Lists(centres, vectors, order, starts, threads=threads)
        self._starts = starts
        self._keys = keys[order]
        self._slots = slots[order]
        self._by_key = np.argsort(self._keys).astype(np.int32)
        self._sorted_keys = self._keys[self._by_key]
        self._is_living = np.ones(len(order), np.bool_)
        self._num_living = len(order)
        self.reaches: tuple[Reach, ...] = (Reach(len(order), len(starts), 1.0),)  # by ascending k; at first, everything

    def __len__(self) -> int:
        return self._num_living

    @property
    def num_lists(self) -> int:
        """Lists, all of which an exact search reads."""
        return len(self._starts)

    @property
    def dead_share(self) -> float:
        """Share of rows that are removed and still take up room."""
        return 1 - self._num_living / len(self._keys)

    @property
    def num_bytes(self) -> int:
        """Memory of the rows, their centres and the books."""
        books = (self._keys, self._sorted_keys, self._by_key, self._slots, self._is_living)
        return self._lists.num_bytes + sum(book.nbytes for book in books)

    def facts(self) -> dict[str, Any]:
        """chunks that are living, dead ones, bytes, lists, and what a search for up to k of them reads and finds."""
        return {
            "chunks": self._num_living,
            "dead": len(self._keys) - self._num_living,
            "bytes": self.num_bytes,
            "lists": self.num_lists,
            "reaches": [asdict(reach) for reach in self.reaches],
        }

    def held(self, keys: Keys) -> Keys:
        """Those of `keys` [n] that have a living row here."""
        return keys[self._rows(keys) >= 0]

    def remove(self, keys: Sequence[int]) -> None:
        """Mask the rows of `keys`, all of which are held."""
        rows = self._rows(np.array(keys, np.int64))
        assert (rows >= 0).all()
        self._is_living[rows] = False
        self._slots[rows] = 0  # the old slot may lie beyond the masks to come
        self._num_living -= len(rows)

    def part(self) -> Part:
        """The living rows as of now."""
        living = np.flatnonzero(self._is_living)
        return Part(self._keys[living], self._slots[living], partial(self._lists.vectors, living))

    def search(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[Keys, Vectors]:
        """As `VectorRows.search`, but rows in lists that are not read go unseen.

        Still min(k, living allowed rows) come back: lists are read until they hold as many, and rows that are dead or
        not allowed count for nothing. Among few rows the search is exact: every list that holds one is read.
        """
        if self._num_living == 0 or len(queries) == 0:
            return empty_results(len(queries))
        is_selected = None
        if allowed is not None:
            is_selected = self._is_living & allowed[self._slots]
        elif self._num_living < len(self._keys):
            is_selected = self._is_living
        num_selected = self._num_living if is_selected is None else int(np.count_nonzero(is_selected))
        num_results = min(k, num_selected)
        if num_results == 0:
            return empty_results(len(queries))
        # The best k of a tenth of the rows are spread like the best 10 * k of all.
        nprobe = self._nprobe(num_results * len(self._keys) / num_selected)
        if num_selected <= _EXACT_ROWS:
            nprobe = self.num_lists
        rows, scores = self.nearest(queries, num_results, nprobe, is_selected)
        keys = self._keys[rows]  # of any row where there is none: its -inf puts it behind the others
        order = np.lexsort((keys, -scores), axis=-1)[:, :num_results]
        return np.take_along_axis(keys, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def nearest(
        self, queries: Vectors, num_results: int, nprobe: int, is_selected: Mask | None
    ) -> tuple[Keys, Vectors]:
        """Rows [Q, n] and scores of those selected [n], n >= num_results, and of every row that ties with the last.

        -1 and -inf fill up. Of the selected rows there are at least `num_results`.
        """
        counts = self._lists.sizes
        if is_selected is not None:
            counts = np.add.reduceat(is_selected.view(np.uint8), self._starts, dtype=np.int64)
        num_selected = int(counts.sum())
        num_fetched = min(num_results + 1, num_selected)
        while True:
            lists = self._choose(queries, counts, nprobe, num_fetched)
            rows, scores = self._lists.read(queries, lists, num_fetched, is_selected)
            if num_fetched == num_selected or bool((scores[:, -1] < scores[:, num_results - 1]).all()):
                return rows, scores
            num_fetched = min(2 * num_fetched, num_selected)

    def _choose(self, queries: Vectors, counts: Keys, nprobe: int, num_wanted: int) -> Keys:
        """The nearest lists [Q, p] with any selected row: `nprobe`, and on until they hold `num_wanted`; -1 fills up.

        `counts` [L] are the selected rows of each list.
        """
        is_full = counts > 0
        num_full = int(np.count_nonzero(is_full))
        num_ranked = min(2 * nprobe, num_full)
        while True:
            ranked = self._lists.rank(queries, num_ranked, is_full)
            held = counts[ranked].cumsum(axis=1)
            if num_ranked == num_full or bool((held[:, -1] >= num_wanted).all()):
                break
            num_ranked = min(2 * num_ranked, num_full)
        needed = np.maximum((held < num_wanted).sum(axis=1) + 1, nprobe)  # [Q]
        ranked = ranked[:, : needed.max()]
        return np.where(np.arange(ranked.shape[1]) < needed[:, None], ranked, -1)

    def _nprobe(self, k: float) -> int:
        """Lists for `k` results: those of the next depth that was measured; beyond the last in proportion."""
        for reach in self.reaches:
            if k <= reach.k:
                return reach.nprobe
        last = self.reaches[-1]
        return min(math.ceil(last.nprobe * k / last.k), self.num_lists)

    def _rows(self, keys: Keys) -> Keys:
        """The living row [n] of each key; -1 where there is none."""
        places = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._keys) - 1)
        rows = self._by_key[places].astype(np.int64)
        return np.where((self._sorted_keys[places] == keys) & self._is_living[rows], rows, -1)
