"""The statuses of several replicas as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Of these the largest counts; other numbers are added up.
_LARGEST = ("step_ms", "collections", "chunks")


def joined(statuses: Sequence[dict[str, Any]], num_replicas: int) -> dict[str, Any]:
    """One status: ready where one replica is, with how many of `num_replicas` are. A replica that died takes its
    counts with it.
    """
    ready = [status for status in statuses if status["ready"]]
    if not ready:
        why = next((status["why"] for status in statuses if "why" in status), "no replica answers")
        return {"ready": False, "why": why, "replicas": 0, "num_replicas": num_replicas}
    whole = dict(ready[0])
    for key, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        values = [status[key] for status in ready]
        whole[key] = max(values) if key in _LARGEST else sum(values)
    return {**whole, "replicas": len(ready), "num_replicas": num_replicas}
