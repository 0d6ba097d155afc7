"""The statuses of several replicas as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Of these the largest counts; other numbers are added up.
_LARGEST = ("step_ms", "collections", "versions", "chunks", "read_s_ago")
# What tells one replica from another.
_OWN = ("replica", "versions", "read_s_ago", "searches", "running", "waiting", "output_tokens")


def joined(statuses: Sequence[dict[str, Any]], num_replicas: int) -> dict[str, Any]:
    """One status: ready where one replica is, with how many of `num_replicas` are, and as `each` what is a replica's
    own. A replica that died takes its counts with it.
    """
    ready = [status for status in statuses if status["ready"]]
    if not ready:
        why = next((status["why"] for status in statuses if "why" in status), "no replica answers")
        return {"ready": False, "why": why, "replicas": 0, "num_replicas": num_replicas}
    whole = {key: value for key, value in ready[0].items() if key != "replica"}
    for key, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        values = [status[key] for status in ready]
        whole[key] = max(values) if key in _LARGEST else sum(values)
    each = [{key: status[key] for key in _OWN if key in status} for status in ready]
    return {**whole, "replicas": len(ready), "num_replicas": num_replicas, "each": each}


def with_lag(retrievers: dict[str, Any], writer: dict[str, Any]) -> dict[str, Any]:
    """A joined status of followers beside the one that writes. Each says how many of its versions it lacks, None where
    the writer does not answer.
    """
    shown = {key: writer[key] for key in ("ready", "why", "versions") if key in writer}
    newest = writer.get("versions")
    each = [
        # A follower that was asked a moment later may have more.
        {**own, "versions_behind": None if newest is None else max(newest - own["versions"], 0)}
        for own in retrievers.get("each", ())
    ]
    return {**retrievers, "writer": shown, **({"each": each} if each else {})}
