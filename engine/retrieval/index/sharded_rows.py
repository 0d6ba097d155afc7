"""Vector rows split over several devices, or over groups of rows that a thread each searches on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from engine.errors import InvalidRequest
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.rows import Keys, Mask, Slots, VectorRows, check_vectors, empty_results


class ShardedRows:
    """See VectorRows, whose calls mean the same here. A row lies in the shard of its key's remainder.

    Every shard returns its best, ties by key, and the best of those are merged in the same order: the results are those
    of one array, whatever the number of shards. Not thread-safe: the owner holds a lock.
    """

    def __init__(self, dim: int, shards: Sequence[VectorRows], pool: Executor) -> None:
        """`shards` are empty and of `dim` numbers a row; `pool` runs a search of each, and outlives this."""
        if not shards or any(len(shard) for shard in shards):
            raise ValueError("sharded rows are made of one or more empty shards")
        self._dim = dim
        self._shards = tuple(shards)
        self._pool = pool

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    def sizes(self) -> list[int]:
        """Rows of each shard."""
        return [len(shard) for shard in self._shards]

    def reserve(self, num_more: int) -> None:
        """Make room for as many rows, which may all fall into one shard."""
        for shard in self._shards:
            shard.reserve(num_more)

    def append(self, keys: Keys, vectors: Vectors, slots: Slots | None = None) -> None:
        """Raises as VectorRows.append, before any shard changes."""
        check_vectors(vectors, self._dim)
        if len(keys) != len(vectors) or len(set(keys.tolist())) != len(keys):
            raise ValueError(f"{len(vectors)} rows need as many distinct keys, got {len(keys)}")
        places = keys % len(self._shards)  # [n]
        chosen = [np.flatnonzero(places == place) for place in range(len(self._shards))]
        for shard, mine in zip(self._shards, chosen, strict=True):
            known = shard.held(keys[mine].tolist())
            if known:
                raise ValueError(f"keys {sorted(known)[:5]} have rows already")
            shard.reserve(len(mine))
        for shard, mine in zip(self._shards, chosen, strict=True):
            if len(mine):
                shard.append(keys[mine], vectors[mine], None if slots is None else slots[mine])

    def remove(self, keys: Sequence[int]) -> None:
        """Raises: KeyError for a key without a row, before any shard changes."""
        by_shard: defaultdict[int, list[int]] = defaultdict(list)
        for key in keys:
            by_shard[key % len(self._shards)].append(key)
        for place, mine in by_shard.items():
            missing = set(mine) - self._shards[place].held(mine)
            if missing:
                raise KeyError(min(missing))
        for place, mine in by_shard.items():
            self._shards[place].remove(mine)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Keys, Vectors]:
        """As VectorRows.search; the shards are searched at once."""
        check_vectors(queries, self._dim)
        if k < 1:
            raise InvalidRequest(f"k={k} is too small; ask for 1 passage or more.", param="k")
        filled = [shard for shard in self._shards if len(shard)]
        if not filled:
            return empty_results(len(queries))
        found = list(self._pool.map(lambda shard: shard.search(queries, k, allowed), filled))
        keys = np.concatenate([part for part, _ in found], axis=1)  # [Q, sum of each shard's results]
        scores = np.concatenate([part for _, part in found], axis=1)
        order = np.lexsort((keys, -scores), axis=-1)[:, :k]
        return np.take_along_axis(keys, order, axis=-1), np.take_along_axis(scores, order, axis=-1)
