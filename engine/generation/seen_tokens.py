"""Which tokens prompt and answer have, and how often the answer has each: what penalties go by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_LEAST_ROOM = 64


class SeenTokens:
    """Of one request. A step reads an array that is there, however long prompt and answer are."""

    def __init__(self, prompt: Iterable[int]) -> None:
        """`prompt`: token ids that count as seen, though the answer has none of them yet."""
        ids = sorted(set(prompt))
        self._place = {token_id: place for place, token_id in enumerate(ids)}
        self._table = np.zeros((2, len(ids) + _LEAST_ROOM), np.int32)  # ids, counts
        self._table[0, : len(ids)] = ids

    def add(self, token_id: int) -> None:
        """The answer has one more token."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == self._table.shape[1]:
            self._table = np.pad(self._table, ((0, 0), (0, place)))
        self._table[0, place] = token_id
        self._table[1, place] += 1

    def table(self, ahead: Sequence[int] = ()) -> NDArray[np.int32]:
        """[2, E]: token ids, and their counts in the answer as if it had the tokens `ahead` too.

        Without `ahead` it is a view, which `add` changes.
        """
        known = self._table[:, : len(self._place)]
        if not ahead:
            return known
        table = np.concatenate([known, np.zeros((2, len(ahead)), np.int32)], axis=1)
        new: dict[int, int] = {}
        for token_id in ahead:
            place = self._place.get(token_id)
            if place is None:
                place = new.setdefault(token_id, known.shape[1] + len(new))
            table[0, place] = token_id
            table[1, place] += 1
        return table[:, : known.shape[1] + len(new)]
