"""What an arm costs once, and what it costs to keep up: minutes of tuning, the size of the index, one document anew."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine.evaluation.asking import Server
from engine.evaluation.compare.documents import SCRATCH, Stored, delete_scratch, read_document, write_document

_NUM_TIMES = 3
# Among the first so many documents the middle one in size stands for all.
_NUM_LISTED = 200


@dataclass(frozen=True, slots=True)
class Refresh:
    """Seconds until one document of `num_chunks` passages, each of them new to the server, can be found: the median."""

    document: str
    num_chunks: int
    seconds: float
    num_times: int


async def measure_refresh(server: Server, collection: str) -> Refresh | None:
    """Write a typical document of the collection, changed in every paragraph, into a collection of its own.

    None where the collection is empty. Raises: what the server answers.
    """
    path = f"/v1/collections/{quote(collection, safe='')}/documents"
    listed = (await server.call("GET", path, params={"limit": _NUM_LISTED}))["documents"]
    if not listed:
        return None
    middle = sorted(listed, key=lambda each: (each["chunks"], each["id"]))[len(listed) // 2]
    stored = await read_document(server, collection, middle["id"])
    id = f"refresh/{uuid.uuid4().hex}"
    seconds, num_chunks = [], 0
    try:
        for number in range(_NUM_TIMES):
            # Passages that were embedded before would cost nothing.
            text = "\n\n".join(f"{id} {number}. {part}" for part in stored.text.split("\n\n"))
            started = time.perf_counter()
            written = await write_document(server, Stored(SCRATCH, id, text, stored.title, {}, 0))
            seconds.append(time.perf_counter() - started)
            num_chunks = written["chunks"]
    finally:
        await delete_scratch(server, id)
    return Refresh(stored.id, num_chunks, sorted(seconds)[_NUM_TIMES // 2], _NUM_TIMES)


def tuning_minutes(adapters: Sequence[Mapping[str, Any]], data: Path) -> dict[str, float]:
    """Minutes of training of each adapter that was tuned into this data folder, by the report of its tuning.

    `adapters` are the server's cards. Left out is one without a report, or whose report is of other data or figures.
    """
    found = {}
    for card in adapters:
        outcome = _report(data / "tuning" / card["name"] / "report.json").get("outcome", {})
        try:
            figures = next(each["after"] for each in outcome["evaluations"][0]["slices"] if each["name"] == "all")
            if (outcome["data_digest"], figures) == (card["data_digest"], card["metrics"]):
                found[card["name"]] = float(outcome["run"]["minutes"])
        except (KeyError, TypeError, ValueError, IndexError, StopIteration):
            continue
    return found


def _report(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


async def index_size(server: Server, collection: str) -> dict[str, int]:
    """Documents, chunks and version of a collection; empty where there is none of that name."""
    rows = (await server.call("GET", "/v1/collections"))["collections"]
    for row in rows:
        if row["name"] == collection:
            return {"documents": row["documents"], "chunks": row["chunks"], "version": row["version"]}
    return {}
