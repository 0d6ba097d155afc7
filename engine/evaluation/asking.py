"""Ask every arm over HTTP, as clients do: so many questions at once, and again where the server is busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from engine.errors import ServerUnreachable, SwitchyardError
from engine.evaluation.questions import Question
from engine.http_errors import ServerError, raise_for_error
from engine.routing.arms import Arm

# What is wrong with one question, and says nothing of the others: malformed or too long, too slow, too large.
_OF_ONE_QUESTION = (400, 408, 413, 422)
_BUSY = (429, 503)
# A connection that broke is tried again so often; a server that restarts is back by then.
_MAX_BREAKS = 3
_BREAK_S = 1.0


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage that the model was shown; offsets in characters of the document."""

    chunk: str
    document: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What an arm said. Where `error` says why there is no answer, the text is empty and the figures are None.

    `latency_ms` is the client's, of the request that was answered; `ttft_ms` and `timings_ms` are the server's.
    `refused`: the server itself said that it has no answer. `citations` are {start, end, passage, score}.
    What answered: `index_version` of the collection where it was searched, `adapter_digest` of the adapter.
    """

    text: str = ""
    route: str = ""
    refused: bool = False
    latency_ms: float | None = None
    ttft_ms: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    passages: tuple[ShownPassage, ...] = ()
    citations: tuple[Mapping[str, Any], ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    finish_reason: str = ""
    index_version: int | None = None
    adapter_digest: str | None = None
    error: str | None = None


class Ask(Protocol):
    """Ask one arm one question. An error that concerns this question alone is in the answer; others are raised."""

    async def __call__(self, arm: Arm, question: Question) -> Answer: ...


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How arms are asked; decoding is greedy. `patience_s`: how long a busy server is asked again."""

    max_tokens: int = 64
    collection: str | None = None
    top_k: int | None = None
    deadline_ms: int | None = None
    with_citations: bool = False
    patience_s: float = 600.0


class Server:
    """An asynchronous connection to one server."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        patience_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport` in place of the network. Raises: SwitchyardError where `url` is none."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._patience_s = patience_s
        try:
            # Proxies of the environment are for the outside world, not for the server next door.
            self._http = httpx.AsyncClient(
                base_url=self._url,
                headers=headers,
                timeout=httpx.Timeout(900.0, connect=10.0),
                limits=httpx.Limits(max_connections=None),
                trust_env=False,
                transport=transport,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise SwitchyardError(f"--url {url!r} is not a URL ({error}). Example: http://127.0.0.1:8000") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send a request, again while the server is busy, and return its JSON.

        Raises: ServerUnreachable; ServerError with the server's own message.
        """
        answer, _ = await self.timed_call(method, path, **request)
        return answer

    async def timed_call(self, method: str, path: str, **request: Any) -> tuple[dict[str, Any], float]:
        """See `call`; with the milliseconds of the request that was answered, those before it left out."""
        give_up_at = time.monotonic() + self._patience_s
        num_breaks = 0
        while True:
            start = time.perf_counter()
            try:
                response = await self._http.request(method, path, **request)
                raise_for_error(response)
                return response.json(), (time.perf_counter() - start) * 1000
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                num_breaks += 1
                if num_breaks > _MAX_BREAKS or isinstance(error, httpx.InvalidURL):
                    raise ServerUnreachable(self._url, str(error) or type(error).__name__) from None
                wait_s = _BREAK_S
            except ServerError as error:
                wait_s = max(error.retry_after_s, 0.0)
                if error.status not in _BUSY or time.monotonic() + wait_s > give_up_at:
                    raise
            await asyncio.sleep(wait_s)


class HttpAsk:
    """`Ask` by the chat route of a server, the arm's model and route pinned."""

    def __init__(self, server: Server, base_model: str, options: AskOptions | None = None) -> None:
        """`base_model` is the name that stands for no adapter; `base_model_name` finds it."""
        self._server = server
        self._base_model = base_model
        self._options = options or AskOptions()

    async def __call__(self, arm: Arm, question: Question) -> Answer:
        """See Ask. Raises: ServerUnreachable; ServerError where the next question would fare no better."""
        return await self.chat(arm, [{"role": "user", "content": question.question}])

    async def chat(self, arm: Arm, messages: list[dict[str, str]], *, route: str | None = None) -> Answer:
        """See `__call__`; with earlier turns, and `route` in place of the arm's."""
        options = self._options
        extension: dict[str, Any] = {"route": route or arm.route, "cite": options.with_citations}
        for name in ("collection", "top_k", "deadline_ms"):
            if (value := getattr(options, name)) is not None:
                extension[name] = value
        body = {
            "model": arm.adapter or self._base_model,
            "messages": messages,
            "max_tokens": options.max_tokens,
            "temperature": 0,
            "switchyard": extension,
        }
        try:
            content, latency_ms = await self._server.timed_call("POST", "/v1/chat/completions", json=body)
        except ServerError as error:
            if error.status not in _OF_ONE_QUESTION:
                raise
            return Answer(error=str(error))
        return _answer(content, latency_ms)


async def base_model_name(server: Server) -> str:
    """The name of the server's base model."""
    cards = (await server.call("GET", "/v1/models"))["data"]
    return str(next(card["id"] for card in cards if card.get("digest") and not card.get("parent")))


async def answer_all(
    ask: Ask, jobs: Iterable[tuple[Arm, Question]], *, concurrency: int
) -> AsyncGenerator[tuple[Arm, Question, Answer]]:
    """Ask all jobs, begun in their order and `concurrency` at once; answers come as they are complete.

    Raises: what `ask` raises; what is still asked then is given up, as it is where the iterator is closed.
    """
    waiting = iter(jobs)
    running: dict[asyncio.Task[Answer], tuple[Arm, Question]] = {}

    def begin() -> None:
        for arm, question in waiting:
            running[asyncio.create_task(_asked(ask, arm, question))] = (arm, question)
            if len(running) >= concurrency:
                return

    try:
        begin()
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            ready = [(*running.pop(task), task.result()) for task in done]
            begin()
            for each in ready:
                yield each
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _asked(ask: Ask, arm: Arm, question: Question) -> Answer:
    return await ask(arm, question)


def _answer(content: dict[str, Any], latency_ms: float) -> Answer:
    choice, outcome, usage = content["choices"][0], content["switchyard"], content["usage"]
    timings = outcome["timings_ms"]
    return Answer(
        text=choice["message"]["content"],
        route=outcome["route"],
        refused=outcome["route"] in ("abstain", "clarify"),
        latency_ms=latency_ms,
        ttft_ms=timings.get("ttft"),
        tokens_in=usage["prompt_tokens"],
        tokens_out=usage["completion_tokens"],
        passages=tuple(
            ShownPassage(
                chunk=each["chunk"],
                document=each["document"],
                text=each.get("text") or "",
                start=each["start"],
                end=each["end"],
                score=each["score"],
            )
            for each in outcome["passages"]
        ),
        citations=tuple(outcome["citations"] or ()),
        timings_ms=timings,
        finish_reason=choice["finish_reason"],
        index_version=outcome["versions"]["index"],
        adapter_digest=outcome["versions"]["adapter"],
    )
