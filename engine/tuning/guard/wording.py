"""How findings put figures."""

from __future__ import annotations

from collections.abc import Sequence

from engine.tuning.guard.report import Level


def level_of(share: float, risky: float, refuse: float) -> Level:
    """The level of a share; a note below both thresholds."""
    return "refuse" if share >= refuse else "risky" if share >= risky else "note"


def percent(share: float) -> str:
    """0.123 as 12.3 %."""
    return f"{100 * share:.1f} %"


def counted(num: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first items, and how many more there are."""
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")
