"""A flat tier that takes the writes, and frozen shards of older rows beside it, which searches read in part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Protocol

import numpy as np

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.freezing import Freezer, FreezingStopped
from engine.retrieval.index.rows import Keys, Mask, Part, Slots
from engine.retrieval.index.sealed import SealedRows
from engine.retrieval.index.shard import Shard

# Above this share of dead rows a shard is built anew.
_MAX_DEAD_SHARE = 0.3

_log = logging.getLogger(__name__)


class _Tier(Protocol):
    """Rows that lie still: a shard, or the rows of the next one."""

    def __len__(self) -> int: ...

    def held(self, keys: Keys) -> Keys: ...

    def remove(self, keys: Sequence[int]) -> None: ...

    def part(self) -> Part: ...

    def search(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[Keys, Vectors]: ...


class FrozenRows:
    """`Rows` whose older part is frozen. The owner holds a lock; only builds run beside it.

    When the flat tier has `freeze_at` rows it is sealed, an empty one takes the writes, and a shard is built of the
    sealed rows, which are searched exactly meanwhile. The first call that finds it ready swaps it in. A new shard
    swallows those that are not larger, so there are few of them.
    """

    def __init__(self, new_live: Callable[[], CpuRows], freezer: Freezer, *, freeze_at: int) -> None:
        self._new_live = new_live
        self._freezer = freezer
        self._freeze_at = freeze_at
        self._live = new_live()
        self._sealed: SealedRows | None = None
        self._shards: tuple[Shard, ...] = ()
        self._build: Future[Shard] | None = None
        self._building: list[_Tier] = []  # what the build reads
        self._removed: list[int] = []  # from those, since it began
        self._retry_at = 0
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards in use; may be read without the lock."""
        return self._shards

    def reserve(self, num_more: int) -> None:
        """See VectorRows."""
        self._live.reserve(num_more)

    def append(self, keys: Keys, vectors: Vectors, slots: Slots | None = None) -> None:
        """See VectorRows."""
        known = [key for tier in self._still() for key in tier.held(keys).tolist()]
        if known:
            raise ValueError(f"keys {sorted(known)[:5]} have rows already")
        self._live.append(keys, vectors, slots)
        self._num_rows += len(keys)
        # Afterwards: what was reserved is in the flat tier that is there now.
        self._advance()

    def remove(self, keys: Sequence[int]) -> None:
        """See VectorRows."""
        wanted = np.array(list(dict.fromkeys(keys)), np.int64)
        found = [(tier, tier.held(wanted).tolist()) for tier in self._still()]
        still = {key for _, held in found for key in held}
        self._live.remove([key for key in wanted.tolist() if key not in still])  # raises before any change
        for tier, held in found:
            tier.remove(held)
            if any(tier is one for one in self._building):
                self._removed += held
        self._num_rows -= len(wanted)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Keys, Vectors]:
        """See VectorRows; what lies in shards is found with the recall that each has measured."""
        self._advance()
        found = [self._live.search(queries, k, allowed)]
        found += [tier.search(queries, k, allowed) for tier in self._still()]
        keys = np.concatenate([one for one, _ in found], axis=1)
        scores = np.concatenate([one for _, one in found], axis=1)
        order = np.lexsort((keys, -scores), axis=-1)[:, :k]
        return np.take_along_axis(keys, order, axis=-1), np.take_along_axis(scores, order, axis=-1)

    def _still(self) -> Iterator[_Tier]:
        if self._sealed is not None:
            yield self._sealed
        yield from self._shards

    def _advance(self) -> None:
        """Take in a shard that is ready, and begin the next where one is due. Neither waits."""
        if self._build is not None and self._build.done():
            self._finish(self._build)
        if self._build is None and self._num_rows >= self._retry_at:
            self._begin()

    def _begin(self) -> None:
        if self._sealed is None and len(self._live) >= self._freeze_at:
            self._sealed = SealedRows(self._live)
            self._live = self._new_live()
        building: list[_Tier] = [] if self._sealed is None else [self._sealed]
        num_rows = len(self._sealed or ())
        for shard in sorted(self._shards, key=len):
            if len(shard) <= num_rows or shard.dead_share > _MAX_DEAD_SHARE:
                building.append(shard)
                num_rows += len(shard)
        if not building:
            return
        if num_rows == 0:
            self._replace(building, None)
            return
        try:
            self._build = self._freezer.start([tier.part() for tier in building if len(tier) > 0])
        except RuntimeError:  # the retriever closes
            return
        self._building, self._removed = building, []

    def _finish(self, build: Future[Shard]) -> None:
        building, self._building, self._build = self._building, [], None
        try:
            shard = build.result()
        except (FreezingStopped, CancelledError):
            self._retry_at = self._num_rows + 1
        except Exception:
            # Everything is still there and searched; more rows are reason to try again.
            self._retry_at = self._num_rows + self._freeze_at
            _log.exception(
                "a shard of %d rows could not be built; they are searched as before", sum(map(len, building))
            )
        else:
            shard.remove(self._removed)
            self._replace(building, shard)
            _log.info("froze %d rows in %d lists: %s", len(shard), shard.num_lists, shard.reaches)

    def _replace(self, tiers: list[_Tier], shard: Shard | None) -> None:
        """Put one shard in the place of what it was built of, which is emptied."""
        kept = tuple(one for one in self._shards if not any(one is tier for tier in tiers))
        self._shards = kept if shard is None or len(shard) == 0 else (*kept, shard)
        if any(tier is self._sealed for tier in tiers):
            self._sealed = None
        self._freezer.discard(tiers)
