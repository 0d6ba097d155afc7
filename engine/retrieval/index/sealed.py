"""Flat rows of which a shard is being built: they lie still, so that the build reads them in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.rows import Keys, Mask, Part

# The slot of hidden rows: it reads the last entry of a mask.
_HIDDEN = -1


class SealedRows:
    """Searched exactly. A removed row is hidden: it moves no other, and is not searched."""

    def __init__(self, rows: CpuRows) -> None:
        """`rows` belong to this object from now on."""
        self._rows = rows
        self._hidden: set[int] = set()
        _, slots = rows.books()
        self._num_slots = int(slots.max(initial=0)) + 1

    def __len__(self) -> int:
        return len(self._rows) - len(self._hidden)

    def held(self, keys: Keys) -> Keys:
        """Those of `keys` [n] that have a row which is not hidden."""
        held = self._rows.held(keys.tolist()) - self._hidden
        return np.array(sorted(held), np.int64)

    def remove(self, keys: Sequence[int]) -> None:
        """Hide the rows of `keys`, all of which are held."""
        self._rows.set_slot(keys, _HIDDEN)
        self._hidden.update(keys)

    def part(self) -> Part:
        """The rows that are not hidden as of now."""
        keys, slots = self._rows.books()
        if not self._hidden:
            return Part(keys, slots, lambda: self._rows.vectors)
        left = np.flatnonzero(slots != _HIDDEN)
        return Part(keys[left], slots[left], partial(self._vectors, left))

    def search(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[Keys, Vectors]:
        """As `VectorRows.search`, without the hidden rows."""
        if self._hidden:
            shown = np.ones(self._num_slots, np.bool_) if allowed is None else allowed
            allowed = np.append(shown, False)
        return self._rows.search(queries, k, allowed)

    def _vectors(self, rows: Keys) -> Vectors:
        vectors: Vectors = self._rows.vectors[rows]
        return vectors
