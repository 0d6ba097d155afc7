"""How the report puts figures."""

from __future__ import annotations

from collections.abc import Iterable

from engine.report.wording import signed
from engine.tuning.outcome import Metrics
from engine.tuning.report.comparison import Comparison

# Metrics of which less is better, or neither.
_NOT_LARGER_BETTER = {"loss", "ece", "not_in_documents"}


def gained(comparison: Comparison) -> str:
    """The difference and its interval."""
    if comparison.low is None or comparison.high is None:
        return f"{signed(comparison.difference)} (too few rows for an interval)"
    return f"{signed(comparison.difference)} (95 % interval {signed(comparison.low)} to {signed(comparison.high)})"


def metric_order(first: str, metrics: Iterable[Metrics]) -> list[str]:
    """The `first` metric, then those of which more is better, then the others."""
    names = {name for each in metrics for name in each}
    others = sorted(names - {first}, key=lambda name: (name in _NOT_LARGER_BETTER, name))
    return [name for name in (first, *others) if name in names]
