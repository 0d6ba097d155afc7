"""A made-up server that arms are compared on: it reads documents, knows some answers by heart, and says what it did."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import unquote

import httpx

_FACT = re.compile(r"The code of (\S+) is (\S+)\.")
_ASKED = re.compile(r"What is the code of (\S+)\?")


def card(name: str, **fields: Any) -> dict[str, Any]:
    """A card of GET /v1/adapters."""
    known = {"loaded": True, "digest": f"digest-{name}", "error": None, "task": "qa", "labels": [], "verdict": "ok"}
    return {"name": name, "metrics": {"f1": 0.5}, "data_digest": f"data-{name}", **known, **fields}


class MadeServer:
    """Answers requests. Documents say "The code of X is Y."; adapters know the codes in `memory`.

    `fail_after` chats it is gone; `on_chat` is called before each.
    """

    def __init__(self, facts: dict[str, str], memory: dict[str, str] | None = None, adapters: Any = ()) -> None:
        self.collections: dict[str, dict[str, dict[str, Any]]] = {"default": {}}
        self.memory = memory or {}
        self.adapters = list(adapters)
        self.version = 0
        self.chats: list[dict[str, Any]] = []
        self.writes: list[tuple[str, str, str]] = []
        self.fail_after: int | None = None
        self.router: str | None = "router-1"
        self.on_chat: Any = None
        for thing, code in facts.items():
            self.write("default", f"docs/{thing}.md", f"The code of {thing} is {code}.")
        self.writes.clear()

    def write(self, collection: str, id: str, text: str, title: str | None = None, metadata: Any = None) -> None:
        """Store a document."""
        self.version += 1
        self.collections.setdefault(collection, {})[id] = {
            "id": id,
            "source": id.split("/")[0],
            "title": title,
            "metadata": metadata or {},
            "text": text.strip(),
            "content_hash": hashlib.sha256(text.encode()).hexdigest(),
            "chunks": 1 + text.count("\n\n"),
            "version": self.version,
        }
        self.writes.append((collection, id, text))

    def reply(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of one request."""
        if path == "/v1/models":
            return 200, {"data": [{"id": "auto"}, {"id": "tiny", "digest": "weights", "parent": None}]}
        if path == "/v1/adapters":
            return 200, {"data": self.adapters}
        if path == "/v1/collections":
            return 200, {"collections": [self._size(name) for name in self.collections]}
        if path == "/v1/route" and self.router is not None:
            return 200, {"results": [], "router": self.router}
        if path == "/v1/search":
            return 200, {"results": [self._find(query)[: body["k"]] for query in body["queries"]]}
        if path == "/v1/chat/completions":
            return self._chat(body)
        found = re.fullmatch(r"/v1/collections/([^/]+)/documents(?:/(.+))?", path)
        if found is None:
            return _error(404, "not_found", f"nothing at {path}")
        return self._document(method, unquote(found[1]), unquote(found[2] or ""), body)

    def _document(self, method: str, collection: str, id: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        documents = self.collections.get(collection, {})
        if method == "PUT":
            self.write(collection, id, body["text"], body.get("title"), body.get("metadata"))
            stored = self.collections[collection][id]
            return 200, {"id": id, "status": "updated", "version": self.version, "chunks": stored["chunks"]}
        if not id:
            return 200, {"documents": list(documents.values()), "next": None}
        if id not in documents:
            return _error(404, "document_not_found", f"collection {collection!r} has no document {id!r}")
        if method == "DELETE":
            del documents[id]
            return 200, {"id": id, "status": "deleted"}
        return 200, documents[id]

    def _chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.on_chat is not None:
            self.on_chat()
        if self.fail_after is not None and len(self.chats) >= self.fail_after:
            raise httpx.ConnectError("gone")
        self.chats.append(body)
        question, pinned = body["messages"][-1]["content"], body["switchyard"]["route"]
        route = "rag" if pinned == "auto" else pinned
        passages = self._find(question)[:2] if route == "rag" else []
        text = self._say(body, question, passages)
        return 200, {
            "id": f"chatcmpl-{len(self.chats)}",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(str(body["messages"])), "completion_tokens": len(text.split())},
            "switchyard": {
                "route": route,
                "passages": passages,
                "citations": None,
                "timings_ms": {"ttft": 1.0},
                "versions": {"index": self.version, "adapter": None, "router": self.router},
            },
        }

    def _say(self, body: dict[str, Any], question: str, passages: list[dict[str, Any]]) -> str:
        asked = _ASKED.search(question)
        thing = asked[1] if asked else question
        if body["model"] not in ("tiny", "auto") and thing in self.memory:
            return self.memory[thing]
        for passage in passages:
            for name, code in _FACT.findall(passage["text"]):
                if name == thing:
                    return code
        if len(body["messages"]) > 1:
            return body["messages"][-2]["content"]
        return "I do not know."

    def _find(self, query: str) -> list[dict[str, Any]]:
        words = {*re.findall(r"\w+", query)}
        ranked = sorted(
            self.collections["default"].values(),
            key=lambda each: -len(words & {*re.findall(r"\w+", each["text"])}),
        )
        return [
            {
                "chunk": each["id"],
                "document": each["id"],
                "title": "",
                "text": each["text"],
                "start": 0,
                "end": len(each["text"]),
                "score": 0.5,
            }
            for each in ranked
        ]

    def _size(self, name: str) -> dict[str, Any]:
        documents = self.collections[name].values()
        version = max((each["version"] for each in documents), default=0)
        chunks = sum(each["chunks"] for each in documents)
        return {"name": name, "documents": len(documents), "chunks": chunks, "version": version, "sources": []}


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "", "code": code, "param": None}}
