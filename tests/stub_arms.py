"""A server that answers as told, for what asks arms: without a network, or behind a real port."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from json_server import listening, transport

from engine.evaluation.asking import Server

SIGNALS = {"lexical.tokens": 4.0, "search.z_best": 3.123456789, "search.gap": None, "past.quality.base": 1.0}


class StubArms:
    """Base model `tiny`, adapter `bot` and labels adapter `labels`; `says` has the text of an arm, or of a question.

    `refusals` are (status, code) given in turn before answers; `signals` gives those of a text; `index_version`,
    `digests` and `arms` may be changed while it runs, and `after` calls a function once so many answers were given.
    """

    def __init__(self) -> None:
        self.says: dict[str, str] = {"base": "Ada", "base+context": "Grace", "bot": "Ada", "bot+context": "Ada"}
        self.arms = ["base", "base+context", "bot", "bot+context", "labels", "labels+context"]
        self.digests = {"bot": "digest-bot", "labels": "digest-labels"}
        self.index_version = 7
        self.refusals: list[tuple[int, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.routed: list[dict[str, Any]] = []
        self.after: tuple[int, Any] | None = None
        self.signals: Callable[[str], dict[str, float | None]] = lambda text: SIGNALS

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one request."""
        if path == "/v1/models":
            cards = [("auto", None, None), ("tiny", None, "0"), ("bot", "tiny", "1"), ("labels", "tiny", "2")]
            return 200, {"data": [{"id": name, "parent": parent, "digest": digest} for name, parent, digest in cards]}
        if path == "/v1/adapters":
            return 200, {"data": [{"name": "bot", "task": "qa"}, {"name": "labels", "task": "classify"}]}
        if path == "/v1/route":
            return 200, self._route(body)
        if path == "/v1/chat/completions":
            return self._chat(body)
        return 404, _error(404, "not_found")

    def connect(self) -> Server:
        """A connection without a network."""
        return Server("http://stub", transport=transport(self.answer))

    def serve(self) -> AbstractContextManager[str]:
        """The URL at which it answers."""
        return listening(self.answer)

    def _route(self, body: dict[str, Any]) -> dict[str, Any]:
        self.routed.append(body)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        results = [
            {
                "route": "direct",
                "signals": self.signals(text) if body.get("signals") else None,
                "embedding": [0.6, 0.8] if body.get("embeddings") else None,
            }
            for text in texts
        ]
        keys = {"model": "model-1", "index": "index-1", "encoder": "encoder-1", "adapters": dict(self.digests)}
        return {"results": results, "keys": keys, "arms": list(self.arms), "router": "rule"}

    def _chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusals:
            status, code = self.refusals.pop(0)
            return status, _error(status, code)
        name, route = body["model"], body["switchyard"]["route"]
        text = body["messages"][-1]["content"]
        arm = ("base" if name == "tiny" else name) + ("+context" if route == "rag" else "")
        self.asked.append((arm, text))
        if self.after is not None and len(self.asked) == self.after[0]:
            self.after[1]()
        searched = route == "rag"
        passage = {"chunk": "c", "document": "docs/a", "title": "", "text": "Ada.", "start": 0, "end": 4, "score": 0.5}
        return 200, {
            "choices": [{"message": {"content": self.says.get(text, self.says.get(arm, ""))}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30 + 100 * searched, "completion_tokens": 2},
            "switchyard": {
                "route": route,
                "passages": [passage] if searched else [],
                "citations": None,
                "timings_ms": {"ttft": 5.0},
                "versions": {
                    "index": self.index_version if searched else None,
                    "adapter": self.digests.get(name),
                    "router": "rule",
                },
            },
        }


def _error(status: int, code: str) -> dict[str, Any]:
    return {"error": {"message": f"refused with {status}", "code": code, "type": "", "param": None}}
