"""One request of a load test: sent, read to its end, timed, and told what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from geventhttpclient.response import HTTPParseError

from loadtest.measures import gaps_s, itl_s, tpot_s, ttft_s
from loadtest.open_loop.request_log import Ending
from loadtest.sse import AnswerFailed, error_message, read_answer

KINDS = ("stream", "chat", "search")
REJECTIONS = (429, 503)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. Times are seconds from the moment that it was timed from; None: there is no such time."""

    ending: Ending
    latency_s: float
    route: str | None = None
    status: int | None = None
    tokens: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    max_gap_s: float | None = None
    retry_after_s: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """What every request asks for."""

    route: str = "auto"
    max_tokens: int = 64
    collection: str | None = None
    api_key: str | None = None


class _Rejected(Exception):
    """429 or 503 with Retry-After: the server protects itself, which is no fault."""

    def __init__(self, status: int, retry_after_s: float) -> None:
        super().__init__(f"HTTP {status}, retry after {retry_after_s:g} s")
        self.status = status
        self.retry_after_s = retry_after_s


class _NotAnswered(AnswerFailed):
    """A response of another status, or none at all (`status` None)."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message, None)
        self.status = status


class Asker:
    """Sends requests through a locust client (FastHttpSession); greenlets may share one."""

    def __init__(self, client: Any, asking: Asking, clock: Callable[[], float] = time.perf_counter) -> None:
        self._client = client
        self._asking = asking
        self._clock = clock

    def ask(self, kind: str, question: str, started: float) -> Outcome:
        """Send one request of a kind in KINDS and read its answer.

        Args:
            started: when it is timed from, on the clock: now, or when it was due.
        """
        send = {"stream": self._stream, "chat": self._chat, "search": self._search}[kind]
        try:
            return send(question, started)
        except _Rejected as rejected:
            elapsed_s = self._clock() - started
            return Outcome("rejected", elapsed_s, status=rejected.status, retry_after_s=rejected.retry_after_s)
        except AnswerFailed as error:
            status = error.status if isinstance(error, _NotAnswered) else 200
            return Outcome("failed", self._clock() - started, error.route, status, error=str(error))

    def _stream(self, question: str, started: float) -> Outcome:
        response = self._post("/v1/chat/completions", self._chat_body(question, stream=True))

        def next_line() -> bytes:
            # FastResponse.iter_content(n) waits for n bytes, several tokens; a line is there as soon as it arrived.
            try:
                return bytes(response._response.readline(b"\n"))
            except HTTPParseError as error:
                raise ConnectionError(str(error)) from error

        try:
            answer = read_answer(next_line, lambda: self._clock() - started)
            # Unread bytes would cost the connection, and the next TTFT would include a new one.
            with suppress(OSError):
                while next_line():
                    pass
        finally:
            response.release()
        first_s, tokens = ttft_s(answer.chunks), answer.num_tokens or 0
        return Outcome(
            "complete",
            answer.latency_s,
            answer.route,
            200,
            tokens,
            first_s,
            tpot_s(answer.latency_s, first_s, tokens) if tokens >= 2 else None,
            itl_s(answer.chunks),
            max(gaps_s(answer.chunks), default=None),
        )

    def _chat(self, question: str, started: float) -> Outcome:
        body = _body(self._post("/v1/chat/completions", self._chat_body(question, stream=False)))
        elapsed_s = self._clock() - started
        try:
            return Outcome("complete", elapsed_s, body["switchyard"]["route"], 200, body["usage"]["completion_tokens"])
        except (KeyError, TypeError):
            raise AnswerFailed(f"not a chat completion: {str(body)[:80]}", None) from None

    def _search(self, question: str, started: float) -> Outcome:
        body = _body(self._post("/v1/search", {"query": question, "mode": "dense", "k": 5, **self._collection()}))
        elapsed_s = self._clock() - started
        try:
            return Outcome("complete", elapsed_s, "dense", 200, len(body["results"][0]))
        except (KeyError, TypeError, IndexError):
            raise AnswerFailed(f"not a search result: {str(body)[:80]}", None) from None

    def _chat_body(self, question: str, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": "auto",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._asking.max_tokens,
            "stream": stream,
            "switchyard": {"route": self._asking.route, **self._collection()},
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        return body

    def _collection(self) -> dict[str, str]:
        name = self._asking.collection
        return {"collection": name} if name else {}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The response to a request that succeeded so far. Raises: _Rejected, AnswerFailed."""
        key = self._asking.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A response to be "caught" that is never entered with `with` fires no event: the rows are ours alone.
        response = self._client.post(
            path, json=body, headers=headers, catch_response=True, stream=bool(body.get("stream"))
        )
        problem = response.request_meta["exception"]
        if problem is None:
            return response
        if response.status_code in (0, 200):
            raise _NotAnswered(f"no whole response: {problem}", response.status_code or None)
        retry_after = response.headers.get("retry-after")
        if response.status_code in REJECTIONS and retry_after is not None:
            response.release()
            raise _Rejected(response.status_code, _seconds(retry_after))
        message = f"HTTP {response.status_code}: {error_message(_body(response))}"
        raise _NotAnswered(message, response.status_code)


def _body(response: Any) -> Any:
    """The JSON body, or its text where it is something else."""
    try:
        return json.loads(response.content)
    except ValueError:
        return str(response.text)[:200]


def _seconds(retry_after: str) -> float:
    # The header may also be a date, which our server never sends; a second is its usual value.
    return float(retry_after) if retry_after.isdecimal() else 1.0
