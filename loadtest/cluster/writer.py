"""A client that writes one document after another while something is done to the server, and reads them all back."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from loadtest.verdicts import Verdict

_DOCUMENTS = "/v1/collections/written/documents"
_WRITE_EVERY_S = 0.25
# Longer than a server waits for its database before it refuses a write.
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Write:
    """One write. `at_unix_s` is the wall clock when it was sent; `status` None: no whole answer came."""

    id: str
    text: str
    at_unix_s: float
    took_s: float
    status: int | None
    error: str = ""
    has_retry_after: bool = False

    @property
    def is_acknowledged(self) -> bool:
        """Whether the server said that it is stored and can be found."""
        return self.status == 200

    @property
    def is_clear(self) -> bool:
        """Whether the server stored it, or said that it did not and when to come back."""
        return self.is_acknowledged or (self.status == 503 and self.has_retry_after)


class Writer(threading.Thread):
    """Writes one document after another, each when the one before was answered; `writes` says what became of them."""

    def __init__(self, url: str) -> None:
        super().__init__(name="writer", daemon=True)
        self.writes: list[Write] = []
        self._url = url
        self._stopping = threading.Event()

    @property
    def acknowledged(self) -> list[Write]:
        """Those that the server said are stored."""
        return [each for each in self.writes if each.is_acknowledged]

    def run(self) -> None:
        """See Thread."""
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S, trust_env=False) as http:
            for number in itertools.count():
                if self._stopping.wait(_WRITE_EVERY_S):
                    return
                text = f"Entry {number}: the cluster wrote revision {number * 7919 % 1000}."
                self.writes.append(_put(http, f"log/{number}.md", text))

    def stop(self) -> None:
        """End after the write that is on its way."""
        self._stopping.set()
        self.join(timeout=_TIMEOUT_S + 30)

    def lost(self) -> list[str]:
        """Acknowledged documents that are not there as they were sent."""
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S, trust_env=False) as http:
            found = {each.id: http.get(f"{_DOCUMENTS}/{quote(each.id)}") for each in self.acknowledged}
        return [
            each.id
            for each in self.acknowledged
            if found[each.id].status_code != 200 or found[each.id].json()["text"] != each.text
        ]

    def verdict(self, lost: list[str]) -> Verdict:
        """Whether what was acknowledged is there."""
        num = len(self.acknowledged)
        words = f"{num} acknowledged, {len(lost)} of them lost, {len(self.writes) - num} refused"
        return Verdict("kept", num > 0 and not lost, float(len(lost)), "documents", words)


def _put(http: httpx.Client, id: str, text: str) -> Write:
    at_unix_s, started = time.time(), time.perf_counter()
    status, error, has_retry_after = None, "", False
    try:
        answer = http.put(f"{_DOCUMENTS}/{quote(id)}", json={"text": text}, params={"wait": "searchable"})
    except httpx.TransportError as broken:
        error = f"{type(broken).__name__}: {broken}"
    else:
        status, has_retry_after = answer.status_code, "Retry-After" in answer.headers
        error = "" if status == 200 else answer.text[:300]
    return Write(id, text, at_unix_s, time.perf_counter() - started, status, error, has_retry_after)
