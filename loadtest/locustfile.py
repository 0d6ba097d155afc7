"""Load on the HTTP API: streamed answers, whole answers and searches over real questions. See docs/load-testing.md.

    locust -f loadtest/locustfile.py --headless -u 8 -t 60s --host http://127.0.0.1:8000

Users form a closed loop: each waits for its answer before it asks again, so an overloaded server is offered less.
"""

from __future__ import annotations

import json
import random
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import gevent
from geventhttpclient.response import HTTPParseError
from locust import FastHttpUser, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from rich.console import Console

from engine.errors import ConfigError
from loadtest.measures import Served, Slo, gaps_s, itl_s, tpot_s, ttft_s
from loadtest.questions import DEFAULT_FILE, ask_in_turn, read_questions
from loadtest.recorder import Recorder
from loadtest.sse import AnswerFailed, StreamedAnswer, error_message, read_answer

NO_ROUTE = "no route yet"
MEASURE_OF_KIND = {"stream": "E2E", "chat": "WHOLE", "search": "SEARCH"}
REJECTIONS = (429, 503)


def _questions_file(value: str) -> str:
    try:
        read_questions(Path(value))
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None
    return value


def _whole_number(minimum: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isdecimal() or int(value) < minimum:
            raise ArgumentTypeError(f"{value!r} is not a whole number of {minimum} or more")
        return int(value)

    return parse


def add_arguments(parser: LocustArgumentParser) -> None:
    """Our own flags; an environment variable sets the default of each."""
    group = parser.add_argument_group("Switchyard options")

    def add(flag: str, default: Any, text: str, env_var: str | None = None, **how: Any) -> None:
        env_var = env_var or "SWITCHYARD_LOADTEST_" + flag.strip("-").replace("-", "_").upper()
        group.add_argument(flag, default=default, env_var=env_var, help=f"{text} (default: %(default)s)", **how)

    add("--questions", str(DEFAULT_FILE), "JSONL file of questions", type=_questions_file, metavar="FILE")
    add("--collection", None, "collection to ask; none: the server's own default", metavar="NAME")
    add("--route", "auto", "route that chat requests ask for", choices=("auto", "direct", "rag"))
    add("--max-tokens", 64, "most tokens of an answer", type=_whole_number(1), metavar="N")
    add("--stream-weight", 6, "share of streamed chat requests", type=_whole_number(0), metavar="N")
    add("--chat-weight", 1, "share of whole (not streamed) chat requests", type=_whole_number(0), metavar="N")
    add("--search-weight", 3, "share of search requests", type=_whole_number(0), metavar="N")
    add("--slo-ttft-ms", 1000.0, "goodput counts answers with at most this TTFT", type=float, metavar="MS")
    add("--slo-tpot-ms", 100.0, "goodput counts answers with at most this TPOT", type=float, metavar="MS")
    add("--order-seed", 0, "seed of the order of questions and kinds of request", type=int, metavar="N")
    add("--api-key", None, "key that the server asks for", env_var="SWITCHYARD_API_KEY", metavar="KEY")


def prepare(environment: Environment, **_: Any) -> None:
    """Read the questions, and print our summary after locust's own tables."""
    options = environment.parsed_options
    if not (options.stream_weight or options.chat_weight or options.search_weight):
        _stop("--stream-weight, --chat-weight and --search-weight are all 0; set at least one of them to 1 or more")
    SwitchyardUser.questions = ask_in_turn(read_questions(Path(options.questions)), options.order_seed)
    SwitchyardUser.kinds = random.Random(options.order_seed)

    def fail_if_nothing_finished(**_: Any) -> None:
        if environment.stats.total.num_requests == 0:
            environment.process_exit_code = 1

    def summarise(**_: Any) -> None:
        slo = Slo(ttft_s=options.slo_ttft_ms / 1000, tpot_s=options.slo_tpot_ms / 1000)
        total = environment.stats.total
        duration_s = (total.last_request_timestamp or total.start_time) - total.start_time
        # Standard output may carry locust's --json.
        SwitchyardUser.recorder.print_summary(Console(stderr=True), slo, duration_s)

    environment.events.quitting.add_listener(fail_if_nothing_finished)
    environment.events.quit.add_listener(summarise)


events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(prepare)


def _stop(message: str) -> NoReturn:
    Console(stderr=True).print(f"loadtest: {message}", highlight=False)
    raise SystemExit(2)


class Rejected(Exception):
    """429 or 503 with Retry-After: the server protects itself, which is no fault."""

    def __init__(self, status: int, retry_after_s: float) -> None:
        super().__init__(f"HTTP {status}, retry after {retry_after_s:g} s")
        self.status = status
        self.retry_after_s = retry_after_s


class SwitchyardUser(FastHttpUser):  # type: ignore[misc]  # locust is untyped here
    """One user who asks question after question."""

    # Longer than the server's default deadline of 120 s, so that it is the server that gives up on an answer.
    network_timeout = 180.0
    connection_timeout = 10.0

    recorder = Recorder()
    questions: Iterator[str]
    kinds: random.Random

    def ask(self) -> None:
        """One request of a kind drawn by the weights."""
        options = self.environment.parsed_options
        weights = (options.stream_weight, options.chat_weight, options.search_weight)
        kind = self.kinds.choices(("stream", "chat", "search"), weights)[0]
        send = {"stream": self._stream, "chat": self._chat, "search": self._search}[kind]
        sent = time.perf_counter()
        try:
            send(next(self.questions), sent)
        except AnswerFailed as error:
            self._fire(MEASURE_OF_KIND[kind], error.route or NO_ROUTE, time.perf_counter() - sent, failure=error)
        except gevent.GreenletExit:
            # Percentiles would look better than the server is if the slowest requests left no trace.
            self.recorder.unfinished[kind] += 1
            raise
        except Rejected as rejected:
            self._fire("REJECTED", f"{rejected.status} {kind}", time.perf_counter() - sent)
            gevent.sleep(rejected.retry_after_s)

    tasks = (ask,)

    def _stream(self, question: str, sent: float) -> None:
        response = self._post("/v1/chat/completions", self._chat_body(question, stream=True))

        def next_line() -> bytes:
            # FastResponse.iter_content(n) waits for n bytes, several tokens; a line is there as soon as it arrived.
            try:
                return bytes(response._response.readline(b"\n"))
            except HTTPParseError as error:
                raise ConnectionError(str(error)) from error

        try:
            self._report(read_answer(next_line, lambda: time.perf_counter() - sent))
            # Unread bytes would cost the connection, and the next TTFT would include a new one.
            with suppress(OSError):
                while next_line():
                    pass
        finally:
            response.release()

    def _report(self, answer: StreamedAnswer) -> None:
        route, tokens = answer.route, answer.num_tokens or 0
        first_s = ttft_s(answer.chunks)
        per_token_s = tpot_s(answer.latency_s, first_s, tokens) if tokens >= 2 else None
        mean_gap_s = itl_s(answer.chunks)
        self._fire("TTFT", route, first_s, length=tokens)
        if mean_gap_s is not None:
            context = {"max_gap_ms": max(gaps_s(answer.chunks)) * 1000}
            self._fire("ITL", route, mean_gap_s, length=tokens, context=context)
        if per_token_s is not None:
            self._fire("TPOT", route, per_token_s, length=tokens)
        self._fire("E2E", route, answer.latency_s, length=tokens)
        self.recorder.served.append(Served(first_s, per_token_s))

    def _chat(self, question: str, sent: float) -> None:
        body = _body(self._post("/v1/chat/completions", self._chat_body(question, stream=False)))
        elapsed_s = time.perf_counter() - sent
        try:
            route, tokens = body["switchyard"]["route"], body["usage"]["completion_tokens"]
        except (KeyError, TypeError):
            raise AnswerFailed(f"not a chat completion: {str(body)[:80]}", None) from None
        self._fire("WHOLE", route, elapsed_s, length=tokens)

    def _search(self, question: str, sent: float) -> None:
        body = _body(self._post("/v1/search", {"query": question, "mode": "dense", "k": 5, **self._collection()}))
        elapsed_s = time.perf_counter() - sent
        try:
            num_passages = len(body["results"][0])
        except (KeyError, TypeError, IndexError):
            raise AnswerFailed(f"not a search result: {str(body)[:80]}", None) from None
        self._fire("SEARCH", "dense", elapsed_s, length=num_passages)

    def _chat_body(self, question: str, *, stream: bool) -> dict[str, Any]:
        options = self.environment.parsed_options
        body: dict[str, Any] = {
            "model": "auto",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": options.max_tokens,
            "stream": stream,
            "switchyard": {"route": options.route, **self._collection()},
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        return body

    def _collection(self) -> dict[str, str]:
        name = self.environment.parsed_options.collection
        return {"collection": name} if name else {}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The response to a request that succeeded so far. Raises: Rejected, AnswerFailed."""
        key = self.environment.parsed_options.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A response to be "caught" that is never entered with `with` fires no event: the rows are ours alone.
        response = self.client.post(
            path, json=body, headers=headers, catch_response=True, stream=bool(body.get("stream"))
        )
        problem = response.request_meta["exception"]
        if problem is None:
            return response
        if response.status_code in (0, 200):
            raise AnswerFailed(f"no whole response: {problem}", None)
        retry_after = response.headers.get("retry-after")
        if response.status_code in REJECTIONS and retry_after is not None:
            response.release()
            raise Rejected(response.status_code, _seconds(retry_after))
        raise AnswerFailed(f"HTTP {response.status_code}: {error_message(_body(response))}", None)

    def _fire(
        self,
        measure: str,
        name: str,
        elapsed_s: float,
        *,
        length: int = 0,
        context: dict[str, Any] | None = None,
        failure: AnswerFailed | None = None,
    ) -> None:
        self.environment.events.request.fire(
            request_type=measure,
            name=name,
            response_time=elapsed_s * 1000,
            response_length=length,
            exception=failure,
            context=context or {},
        )
        self.recorder.add(measure, name, elapsed_s * 1000, None if failure is None else str(failure))


def _body(response: Any) -> Any:
    """The JSON body, or its text where it is something else."""
    try:
        return json.loads(response.content)
    except ValueError:
        return str(response.text)[:200]


def _seconds(retry_after: str) -> float:
    # The header may also be a date, which our server never sends; a second is its usual value.
    return float(retry_after) if retry_after.isdecimal() else 1.0
