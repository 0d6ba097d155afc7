"""Which adapter lies in which slot of the device. Bookkeeping only: no torch, no clock.

Policy: an adapter that somebody waits for takes a free slot, else the one that was used least recently among those that
no running sequence uses. Where all are in use, it may displace an adapter all of whose sequences arrived later, and
only after that one had some steps: an older request never waits for a younger one, and slots do not change hands every
step (the collapse that batches of many adapters otherwise end in).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

# Steps that an adapter keeps its slot once it has it.
MIN_RESIDENT_STEPS = 32


@dataclass(slots=True)
class _Tenure:
    digest: str
    since: int
    last_used: int


class SlotTable:
    """`num_slots` places for adapters, by content digest."""

    def __init__(self, num_slots: int, *, min_resident_steps: int = MIN_RESIDENT_STEPS) -> None:
        self._tenures: list[_Tenure | None] = [None] * num_slots
        self._slot_of: dict[str, int] = {}
        self._min_resident_steps = min_resident_steps
        self._step = 0
        self.num_swaps = 0  # adapters that were given a slot

    def tick(self) -> None:
        """A step begins."""
        self._step += 1

    def slot_of(self, digest: str) -> int | None:
        """The adapter's slot, None where it has none."""
        return self._slot_of.get(digest)

    @property
    def digests(self) -> frozenset[str]:
        """Of the adapters that have a slot."""
        return frozenset(self._slot_of)

    def claim(self, digest: str, *, in_use: Collection[str], wanted: Collection[str] = ()) -> int | None:
        """The adapter's slot, given to it now if it had none; None where running sequences use all slots.

        `in_use` are the adapters of running sequences. Those that others wait for (`wanted`) give way last.
        """
        slot = self._slot_of.get(digest)
        if slot is None:
            slot = self._vacant(in_use, wanted)
            if slot is None:
                return None
            self._evict(slot)
            self._tenures[slot] = _Tenure(digest, self._step, self._step)
            self._slot_of[digest] = slot
            self.num_swaps += 1
        tenure = self._tenures[slot]
        assert tenure is not None
        tenure.last_used = self._step
        return slot

    def displaced_by(self, arrival: int, oldest: Mapping[str, int]) -> str | None:
        """The adapter in use that a sequence of that arrival may take the slot of; None where there is none.

        `oldest` are the adapters of running sequences with the arrival of the oldest of each.
        """
        candidates = [
            (oldest[tenure.digest], tenure.digest)
            for tenure in self._tenures
            if tenure is not None
            and oldest.get(tenure.digest, -1) > arrival
            and self._step - tenure.since >= self._min_resident_steps
        ]
        return max(candidates)[1] if candidates else None

    def has_vacancy(self, in_use: Collection[str]) -> bool:
        """Whether some slot is free or held by an adapter that no running sequence uses."""
        return self._vacant(in_use, ()) is not None

    def release(self, digest: str) -> None:
        """Free the adapter's slot: it is gone for good."""
        slot = self._slot_of.get(digest)
        if slot is not None:
            self._evict(slot)

    def _vacant(self, in_use: Collection[str], wanted: Collection[str]) -> int | None:
        """A free slot, else the idle one to give up first."""
        best: tuple[bool, int, int] | None = None
        for slot, tenure in enumerate(self._tenures):
            if tenure is None:
                return slot
            if tenure.digest not in in_use:
                rank = (tenure.digest in wanted, tenure.last_used, slot)
                best = rank if best is None else min(best, rank)
        return None if best is None else best[2]

    def _evict(self, slot: int) -> None:
        tenure = self._tenures[slot]
        if tenure is not None:
            del self._slot_of[tenure.digest]
            self._tenures[slot] = None
