"""How reports put figures."""

from __future__ import annotations

from collections.abc import Sequence

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


def signed(value: float) -> str:
    """+0.031 or −0.031."""
    return f"{value:+.3f}".replace("-", "−")


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


def percent(share: float) -> str:
    """0.123 as 12.3 %."""
    return f"{100 * share:.1f} %"


def counted(num: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first items, and how many more there are."""
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def metric_name(name: str) -> str:
    """A metric as readers call it."""
    return _METRIC_NAMES.get(name, name.replace("_", " "))
