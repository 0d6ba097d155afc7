"""How findings put figures."""

from __future__ import annotations

from engine.tuning.guard.report import Level


def level_of(share: float, risky: float, refuse: float) -> Level:
    """The level of a share; a note below both thresholds."""
    return "refuse" if share >= refuse else "risky" if share >= risky else "note"
