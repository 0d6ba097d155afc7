"""Texts that are nearly the same: character 5-grams with a Jaccard similarity of at least 0.8.

Two sets that similar share one of the few rarest members of each (prefix filtering: Chaudhuri et al., ICDE 2006;
Bayardo et al., WWW 2007), so each text is compared with few others, and short ones miss nothing by chance.
Lee et al. (arXiv:2107.06499) compare 5-grams at 0.8 too, of words; words are too coarse for texts of one line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.tuning.guard.groups import Groups

SHINGLE_CHARS = 5
NEAR_JACCARD = 0.8
# A longer text is compared by its beginning and its end; in large files, by less of them.
MAX_CHARS, MIN_CHARS, MAX_TOTAL_CHARS = 2_000, 200, 20_000_000
# Only where thousands of texts share their rarest 5-grams, so are near-duplicates anyway, are there more.
MAX_COMPARED = 1_000
# Large sets are first compared by the least hash in each of 128 ranges (one permutation hashing, Li et al., NeurIPS
# 2012). At 0.8 the share of equal ones has a standard deviation of 0.035, so 0.6 passes all but 1 pair in 10 million.
SKETCHED_FROM, SKETCH_BITS, SKETCH_PASS = 512, 7, 0.6

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]


class NearIndex:
    """The texts of a file, ready to be compared with each other and with others. Texts are normalised ones."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._max_chars = max(MIN_CHARS, min(MAX_CHARS, MAX_TOTAL_CHARS // max(1, len(texts))))
        hashes = [shingles(text, self._max_chars) for text in texts]
        self._sizes = np.array([len(each) for each in hashes], np.int64)
        has_sketches = bool(len(texts)) and int(self._sizes.max()) >= SKETCHED_FROM
        self._sketches = np.stack([_sketch(each) for each in hashes]) if has_sketches else None
        self._known, ids, counts = np.unique(
            np.concatenate(hashes) if hashes else np.empty(0, np.uint64), return_inverse=True, return_counts=True
        )
        rarest_first = np.argsort(counts, kind="stable")
        # Members of a set are ranks, so that a sorted set begins with its rarest ones.
        self._rank = np.empty(len(counts), np.int64)
        self._rank[rarest_first] = np.arange(len(counts))
        # What only one text has finds no other one of these texts; for texts of other files its owner is kept.
        self._first_shared = int(np.searchsorted(counts[rarest_first], 2))
        self._owner = np.empty(self._first_shared, np.int64)
        pieces = np.split(self._rank[ids], np.cumsum(self._sizes)[:-1]) if hashes else []
        self._sets: list[Ids] = [np.sort(piece) for piece in pieces]
        self._rows_of: dict[int, list[int]] = defaultdict(list)
        self._groups = Groups(len(texts))
        for row, members in enumerate(self._sets):
            self._add(row, members)

    def clusters(self) -> list[int]:
        """The cluster of each text, named by its first text; near-duplicates of near-duplicates are in one."""
        return self._groups.roots()

    def nearest(self, text: str) -> tuple[int, float] | None:
        """(position, Jaccard) of the most similar near-duplicate of `text`, which is not one of the texts itself."""
        if not self._sets:
            return None
        hashes = shingles(text, self._max_chars)
        places = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        members = np.sort(self._rank[places[self._known[places] == hashes]])
        # Members that no text has are the rarest of all.
        num_unknown = len(hashes) - len(members)
        candidates = self._candidates(members[: max(0, _prefix_length(len(hashes)) - num_unknown)])
        best: tuple[int, float] | None = None
        for row in self._plausible(candidates, len(hashes), _sketch(hashes)):
            similarity = _jaccard(members, self._sets[row], num_more=num_unknown)
            if similarity >= NEAR_JACCARD and (best is None or similarity > best[1]):
                best = (row, similarity)
        return best

    def _add(self, row: int, members: Ids) -> None:
        num_owned = int(np.searchsorted(members, self._first_shared))
        self._owner[members[:num_owned]] = row
        shared = members[num_owned : _prefix_length(len(members))]
        sketch = None if self._sketches is None else self._sketches[row]
        for other in self._plausible(self._candidates(shared), len(members), sketch):
            is_new = not self._groups.are_joined(row, other)
            if is_new and _jaccard(members, self._sets[other], num_more=0) >= NEAR_JACCARD:
                self._groups.join(row, other)
        for member in shared.tolist():
            self._rows_of[member].append(row)

    def _candidates(self, prefix: Ids) -> list[int]:
        """Rows that share one of these members in their own prefix."""
        found: dict[int, None] = {}
        for member in prefix.tolist():
            if member < self._first_shared:
                found[int(self._owner[member])] = None
            else:
                found.update(dict.fromkeys(self._rows_of.get(member, ())))
            if len(found) > MAX_COMPARED:
                break
        return list(found)[:MAX_COMPARED]

    def _plausible(self, candidates: list[int], size: int, sketch: Hashes | None) -> list[int]:
        """The candidates whose size, and sketch where sets are large, allow NEAR_JACCARD."""
        if not candidates:
            return candidates
        rows = np.array(candidates)
        sizes = self._sizes[rows]
        rows = rows[np.minimum(sizes, size) >= NEAR_JACCARD * np.maximum(sizes, size)]
        if self._sketches is not None and sketch is not None and size >= SKETCHED_FROM and len(rows):
            others = self._sketches[rows]
            is_filled = (others != 0) | (sketch != 0)
            num_equal = ((others == sketch) & is_filled).sum(axis=1)
            rows = rows[num_equal >= SKETCH_PASS * is_filled.sum(axis=1)]
        plausible: list[int] = rows.tolist()
        return plausible


def _prefix_length(size: int) -> int:
    """How many of the rarest of `size` members a similar set must share one of."""
    # The subtrahend keeps a product that is whole from being rounded up beyond itself.
    return size - math.ceil(NEAR_JACCARD * size - 1e-9) + 1


def _jaccard(one: Ids, other: Ids, *, num_more: int) -> float:
    """Shared over all members. `num_more` members of `one` are left out, as the other set cannot have them."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + num_more + len(other) - shared)


def shingles(text: str, max_chars: int) -> Hashes:
    """Sorted distinct 64-bit hashes of the 5-grams; of the whole text where it is shorter."""
    if len(text) > max_chars:
        text = text[: max_chars // 2] + text[-(max_chars // 2) :]
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    num = max(1, len(codes) - SHINGLE_CHARS + 1)
    hashes = np.zeros(num, np.uint64)
    for offset in range(min(SHINGLE_CHARS, len(codes))):
        # Wraps around at 2**64; the multiplier is that of MMIX's generator (Knuth).
        hashes = hashes * np.uint64(6364136223846793005) + codes[offset : offset + num]
    # The finaliser of splitmix64 spreads what sketches cut into ranges.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return np.unique(hashes ^ (hashes >> np.uint64(31)))


def _sketch(hashes: Hashes) -> Hashes:
    """[128] the least of the sorted hashes in each equal range of their values; 0 where there is none."""
    ranges = np.arange(1 << SKETCH_BITS, dtype=np.uint64)
    places = np.searchsorted(hashes, ranges << np.uint64(64 - SKETCH_BITS))
    least = hashes[np.minimum(places, len(hashes) - 1)]
    is_filled = (places < len(hashes)) & (least >> np.uint64(64 - SKETCH_BITS) == ranges)
    return np.where(is_filled, least, np.uint64(0))
