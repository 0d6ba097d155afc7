"""How the report puts figures."""

from __future__ import annotations

from collections.abc import Iterable

from engine.tuning.outcome import Metrics
from engine.tuning.report.comparison import Comparison

_METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "f1": "token F1",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "not_in_documents": "answered “not in the documents”",
    "loss": "loss (nats)",
    "ece": "calibration error",
}
# Metrics of which less is better, or neither.
_NOT_LARGER_BETTER = {"loss", "ece", "not_in_documents"}


def metric_name(name: str) -> str:
    """A metric as readers call it."""
    return _METRIC_NAMES.get(name, name.replace("_", " "))


def signed(value: float) -> str:
    """+0.031 or −0.031."""
    return f"{value:+.3f}".replace("-", "−")


def gained(comparison: Comparison) -> str:
    """The difference and its interval."""
    if comparison.low is None or comparison.high is None:
        return f"{signed(comparison.difference)} (too few rows for an interval)"
    return f"{signed(comparison.difference)} (95 % interval {signed(comparison.low)} to {signed(comparison.high)})"


def duration(seconds: float) -> str:
    """0.42 s, 12 s, 3.5 min or 2.1 h."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def size(num_bytes: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def metric_order(first: str, metrics: Iterable[Metrics]) -> list[str]:
    """The `first` metric, then those of which more is better, then the others."""
    names = {name for each in metrics for name in each}
    others = sorted(names - {first}, key=lambda name: (name in _NOT_LARGER_BETTER, name))
    return [name for name in (first, *others) if name in names]
