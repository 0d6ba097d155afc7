"""Clients that ask without a break while replicas come, and keep what should not have been answered so."""

from __future__ import annotations

import abc
import itertools
import threading
from typing import Any
from urllib.parse import quote

import httpx

COLLECTION = "followed"
_TIMEOUT_S = 60.0
_PAUSE_S = 0.02


class Asker(threading.Thread, abc.ABC):
    """Asks until `stop`; `wrong` has a line for every answer that is not as it must be."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.num_asked = 0
        self.wrong: list[str] = []
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False)
        self._stopping = threading.Event()

    def run(self) -> None:
        """See Thread."""
        with self._http:
            for number in itertools.count():
                if self._stopping.wait(_PAUSE_S):
                    return
                try:
                    self._ask(number)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """End after the answer that is on its way."""
        self._stopping.set()
        self.join(timeout=_TIMEOUT_S + 5)

    @abc.abstractmethod
    def _ask(self, number: int) -> None: ...

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The body of an answer, None where it is no answer."""
        self.num_asked += 1
        answer = self._http.post(path, json=body)
        if answer.status_code == 200:
            return answer.json()
        self.wrong.append(f"{answer.status_code}: {answer.text[:200]}")
        return None


class ReadsItsWrites(Asker):
    """Writes a document and searches for it at once by `min_version`, then without: how old an answer may be.

    `newest` is the version of the last acknowledged write, `floor` what no search may be behind.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.newest = 0
        self.floor = 0

    def _ask(self, number: int) -> None:
        path = f"/v1/collections/{COLLECTION}/documents/{quote(f'page/{number % 50}.md')}"
        written = self._http.put(path, json={"text": f"saying{number} of page {number % 50}"})
        if written.status_code != 200:
            self.wrong.append(f"write {written.status_code}: {written.text[:200]}")
            return
        self.newest = int(written.json()["version"])
        floor, body = self.floor, {"query": f"saying{number}", "collection": COLLECTION, "mode": "lexical"}
        for min_version in (self.newest, self.newest, 0):
            found = self._post("/v1/search", body | ({"min_version": min_version} if min_version else {}))
            if found is None:
                continue
            if found["version"] < max(min_version, floor):
                self.wrong.append(f"version {found['version']}, min_version={min_version}, floor {floor}")
            if min_version and not any(f"saying{number} " in hit["text"] for hit in found["results"][0]):
                self.wrong.append(f"write {number} was not found at min_version={min_version}")


class AsksAdapter(Asker):
    """Asks an adapter by name: an answer without it, or of other files, is wrong."""

    def __init__(self, url: str, name: str, digest: str) -> None:
        super().__init__(url)
        self._name = name
        self._digest = digest

    def _ask(self, number: int) -> None:
        body = {
            "model": self._name,
            "messages": [{"role": "user", "content": f"What is entry {number}?"}],
            "max_tokens": 4,
            "switchyard": {"route": "direct"},
        }
        answer = self._post("/v1/chat/completions", body)
        if answer is not None and answer["switchyard"]["versions"]["adapter"] != self._digest:
            self.wrong.append(f"adapter {answer['switchyard']['versions']['adapter']}, not {self._digest}")
