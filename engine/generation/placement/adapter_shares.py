"""How much of the recent traffic each adapter has."""

from __future__ import annotations

# The last few hundred requests count: enough to tell a fifth from a quarter, few enough to follow a change.
_MEMORY = 512
_MAX_ADAPTERS = 4096
# The first requests are no measure: they are taken to follow so many for other adapters.
_ASSUMED = 64


class AdapterShares:
    """Counts of requests that fade: one counts half as much after some 350 more."""

    def __init__(self) -> None:
        self._weight = 1.0  # of the next request; it grows instead of all counts shrinking
        self._total = float(_ASSUMED)
        self._counts: dict[str, float] = {}

    def count(self, adapter: str | None) -> None:
        """A request for the adapter; None: for the base model."""
        self._weight *= 1 + 1 / _MEMORY
        self._total += self._weight
        if adapter is not None:
            self._counts[adapter] = self._counts.get(adapter, 0.0) + self._weight
        if self._weight > 1e12 or len(self._counts) > _MAX_ADAPTERS:
            self._shrink()

    def share(self, adapter: str) -> float:
        """Of all requests of late, in [0, 1]."""
        return self._counts.get(adapter, 0.0) / self._total

    def _shrink(self) -> None:
        kept = sorted(self._counts.items(), key=lambda item: -item[1])[: _MAX_ADAPTERS // 2]
        self._counts = {adapter: count / self._weight for adapter, count in kept}
        self._total /= self._weight
        self._weight = 1.0
