"""Documents to a server: batch by batch, with a progress bar; what is wrong with one stops no other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.cli.client import Client, ServerError
from engine.cli.scanning import LocalDocument, Tally

BATCH_BYTES = 256 * 1024
BATCH_ITEMS = 32
# Bad request, too large, and a type that the server does not read.
_OF_ONE_FILE = (400, 413, 415)
# How long a server that has too much to do is asked again.
_MAX_PATIENCE_S = 600.0


class Sender:
    """Writes to one collection; in the background all of them are counted by one `job`."""

    def __init__(self, client: Client, collection: str, tally: Tally, *, is_background: bool) -> None:
        self._client = client
        self._path = f"/v1/collections/{quote(collection, safe='')}/documents"
        self._tally = tally
        self._is_background = is_background
        self.job: str | None = None

    def send(
        self,
        items: Sequence[tuple[str, dict[str, Any]]],
        files: Sequence[tuple[str, LocalDocument]],
        console: Console,
    ) -> None:
        """Send lines of a batch, and files that travel as they are, by document id."""
        columns = (
            TextColumn("ingest"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("" if self._is_background else "{task.fields[chunks]} chunks"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("ingest", total=len(items) + len(files), chunks=0)
            for batch in _batches(items):
                self._send_batch(batch)
                progress.update(task, advance=len(batch), chunks=self._tally.chunks)
            for id, document in files:
                self._send_file(id, document)
                progress.update(task, advance=1, chunks=self._tally.chunks)

    def _send_batch(self, batch: Sequence[tuple[str, bytes]]) -> None:
        try:
            answer = self._call(
                "POST",
                f"{self._path}:batch",
                content=b"".join(line for _, line in batch),
                headers={"Content-Type": "application/x-ndjson"},
            )
        except ServerError as error:
            # A file over the size limit travels alone; anything else stops the run with the server's message.
            if error.status != 413:
                raise
            for id, _ in batch:
                self._tally.fail(id, str(error))
        else:
            for result in answer["results"]:
                self._count(result)
            self._tally.version = max(self._tally.version, answer["version"])

    def _send_file(self, id: str, document: LocalDocument) -> None:
        """What is wrong with this file stops no other; anything else ends the run."""
        try:
            body = Path(document.origin).read_bytes()
        except OSError as error:
            self._tally.fail(id, f"cannot be read ({error.strerror})")
            return
        try:
            result = self._call(
                "PUT", f"{self._path}/{quote(id)}", content=body, headers={"Content-Type": document.content_type}
            )
        except ServerError as error:
            if error.status not in _OF_ONE_FILE:
                raise
            self._tally.fail(id, str(error))
        else:
            self._count(result)
            self._tally.version = max(self._tally.version, result["version"])

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        if not self._is_background:
            return self._client.call(method, path, **request)
        give_up_at = time.monotonic() + _MAX_PATIENCE_S
        while True:
            params = {"wait": "durable"} | ({"job": self.job} if self.job else {})
            try:
                answer = self._client.call(method, path, params=params, **request)
            except ServerError as error:
                # The server is slower than this command: it takes more once it has applied some.
                if error.code != "overloaded" or time.monotonic() > give_up_at:
                    raise
                time.sleep(error.retry_after_s)
            else:
                self.job = answer["job"] or self.job
                return answer

    def _count(self, result: dict[str, Any]) -> None:
        if result["status"] == "failed":
            self._tally.fail(result["id"], result["error"])
            return
        self._tally.counts[result["status"]] += 1
        self._tally.chunks += result["chunks"]
        self._tally.embedded += result["embedded"]


def _batches(items: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for id, item in items:
        line = json.dumps(item).encode() + b"\n"
        if batch and (size + len(line) > BATCH_BYTES or len(batch) >= BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append((id, line))
        size += len(line)
    if batch:
        yield batch
