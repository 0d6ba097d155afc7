"""What replicas probably have computed of a prompt: a guess from what was sent to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

# About 10 MB for a few replicas; with pieces of 256 tokens, more than their caches hold.
_MAX_PIECES = 65_536
# Other gateways fill a replica's cache too, unseen from here: after so long nothing is taken for granted.
_MAX_AGE_S = 600.0
# Tokens that a replica which has not said its size is taken to keep.
_UNKNOWN_CAPACITY = 16_384


class _Held(NamedTuple):
    clock: int
    at_s: float


class PrefixSketch:
    """Beginnings of prompts, and where they were sent. The longest unused give way.

    A replica's clock is the tokens that were sent to it and not held: a piece is taken for lost once the clock went on
    by as many as the replica's cache holds, as in a cache that drops what was used least recently.
    """

    def __init__(self, *, max_pieces: int = _MAX_PIECES, max_age_s: float = _MAX_AGE_S) -> None:
        self._max_pieces = max_pieces
        self._max_age_s = max_age_s
        self._holders: OrderedDict[int, dict[str, _Held]] = OrderedDict()
        self._clocks: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def cached(
        self, pieces: tuple[tuple[int, int], ...], capacities: Mapping[str, int], now_s: float
    ) -> dict[str, int]:
        """Tokens of the prompt's beginning that each replica probably has; one without any is left out.

        `pieces` as in Work; `capacities` in tokens.
        """
        found: dict[str, int] = {}
        # From the longest on: a replica that has it has the shorter ones.
        for piece, tokens in reversed(pieces):
            for replica, held in self._holders.get(piece, {}).items():
                if replica not in found and self._is_held(replica, held, capacities, now_s):
                    found[replica] = tokens
            if len(found) == len(self._clocks):
                break
        return found

    def add(self, replica: str, pieces: tuple[tuple[int, int], ...], num_new_tokens: int, now_s: float) -> None:
        """A prompt was sent there, `num_new_tokens` of which it had not."""
        clock = self._clocks[replica] = self._clocks.get(replica, 0) + num_new_tokens
        held = _Held(clock, now_s)
        for piece, _ in pieces:
            self._holders.setdefault(piece, {})[replica] = held
            self._holders.move_to_end(piece)
        while len(self._holders) > self._max_pieces:
            self._holders.popitem(last=False)

    def forget(self, replica: str) -> None:
        """It is gone, and its name never comes back."""
        self._clocks.pop(replica, None)
        for piece in [piece for piece, holders in self._holders.items() if holders.pop(replica, None) and not holders]:
            del self._holders[piece]

    def _is_held(self, replica: str, held: _Held, capacities: Mapping[str, int], now_s: float) -> bool:
        room = capacities.get(replica, _UNKNOWN_CAPACITY)
        return self._clocks[replica] - held.clock < room and now_s - held.at_s < self._max_age_s
