"""`switchyard bench serving`: what HTTP, Ray Serve and the gateway cost over the same engine in one process.

A server and an engine of its own run on the same machine, and take turns: server, engine, server, engine ... Each
round sends the same questions from `c` clients that each wait for their answer before asking again (closed loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from engine.config import EngineConfig
from engine.errors import SwitchyardError
from engine.generation.engine import Engine
from engine.models import resolve_model
from engine.values import GenerationRequest, Message, SamplingParams
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread
from loadtest.closed_loop import closed_loop
from loadtest.measures import Chunk, Served, percentile, tpot_s, ttft_s
from loadtest.questions import read_questions
from loadtest.server import SWITCHYARD, running_server

PEER = "in-process engine"
QUESTIONS = Path(__file__).with_name("serving_questions.jsonl")
DOCS = Path(__file__).parents[1] / "docs"
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Answered:
    """One complete answer as its client saw it."""

    served: Served
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one system: `c` clients, all questions."""

    answers: tuple[Answered, ...]
    duration_s: float

    def output_tok_s(self) -> float:
        """Generated tokens per second, over the whole round."""
        return sum(answer.num_tokens for answer in self.answers) / self.duration_s

    def ttft_ms(self) -> float:
        """Median time to first token in milliseconds."""
        return 1000 * percentile([answer.served.ttft_s for answer in self.answers], 50)

    def tpot_ms(self) -> float:
        """Median time per output token in milliseconds."""
        return 1000 * percentile([a.served.tpot_s for a in self.answers if a.served.tpot_s is not None], 50)


Ask = Callable[[str], Awaitable[Answered]]
METRICS: tuple[tuple[str, str, Callable[[Round], float], bool], ...] = (
    ("output_tok_s", "tokens/s", Round.output_tok_s, True),
    ("ttft_p50", "ms", Round.ttft_ms, False),
    ("tpot_p50", "ms", Round.tpot_ms, False),
)
# Metrics of the ratios, by the name of their case.
RATIOS = {"tokens": "output_tok_s", "ttft": "ttft_p50"}


def run(*, quick: bool, json_path: Path | None) -> None:
    """Run the bench, print it, and write `json_path` if there is one."""
    console = Console(stderr=True, highlight=False)
    rounds, per_client = (3, 1) if quick else (9, 4)
    config = EngineConfig()
    model = resolve_model(config.generator.model, kind="generator", show_progress=True)
    resolve_model(config.retriever.model, kind="encoder", show_progress=True)
    questions = read_questions(QUESTIONS)
    console.print("starting a server and ingesting docs/ ...")
    with _server() as url:
        engine = Engine(model.path, config.generator)
        try:
            report = asyncio.run(_measure(url, engine, questions, rounds, per_client, console))
        finally:
            engine.close()
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)


async def _measure(
    url: str, engine: Engine, questions: Sequence[str], rounds: int, per_client: int, console: Console
) -> Report:
    rows: list[Row] = []
    ratios: list[Ratio] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        direct, rag = _over_http(http, "direct"), _over_http(http, "rag")
        in_process = _in_process(engine)
        for ask in (direct, rag, in_process):
            await _round(ask, questions[:2], clients=2)  # warm-up
        for clients in (1, 8):
            asked = list(itertools.islice(itertools.cycle(questions), max(clients, 2) * per_client))
            console.print(f"c={clients}: {rounds} rounds of {len(asked)} questions for each system, in turn ...")
            ours, peer, ours_rag = [], [], []
            for _ in range(rounds):
                ours.append(await _round(direct, asked, clients))
                peer.append(await _round(in_process, asked, clients))
                ours_rag.append(await _round(rag, asked, clients))
            rows += _rows(f"direct c={clients}", OURS, ours) + _rows(f"direct c={clients}", PEER, peer)
            rows += _rows(f"rag c={clients}", OURS, ours_rag)
            ratios += _ratios(clients, ours, peer)
            rows.append(await _search_row(http, asked, clients, rounds))
    extra = {
        "workload": f"{len(questions)} questions on docs/, max_tokens {MAX_TOKENS}, greedy, closed loop, "
        f"{per_client} questions per client and round, {rounds} rounds; client on the same cores"
    }
    return Report("serving", rows, ratios, extra)


def _rows(case: str, system: str, rounds: Sequence[Round]) -> list[Row]:
    return [
        Row(case, system, metric, unit, *spread([value(each) for each in rounds])) for metric, unit, value, _ in METRICS
    ]


def _ratios(clients: int, ours: Sequence[Round], peer: Sequence[Round]) -> list[Ratio]:
    by_name = {metric: (value, higher) for metric, _, value, higher in METRICS}
    found = []
    for case, metric in RATIOS.items():
        value, higher = by_name[metric]
        pairs = paired_ratio([value(r) for r in ours], [value(r) for r in peer], higher_is_better=higher)
        found.append(Ratio(f"{case} c={clients}", metric, PEER, *pairs))
    return found


async def _search_row(http: httpx.AsyncClient, questions: Sequence[str], clients: int, rounds: int) -> Row:
    async def search(question: str) -> None:
        (await http.post("/v1/search", json={"query": question})).raise_for_status()

    rates = []
    for _ in range(rounds):
        asked = [*questions, *questions]
        rates.append(len(asked) / await closed_loop(asked, clients, search))
    return Row(f"search c={clients}", OURS, "queries_s", "queries/s", *spread(rates))


async def _round(ask: Ask, questions: Sequence[str], clients: int) -> Round:
    answers: list[Answered] = []

    async def one(question: str) -> None:
        answers.append(await ask(question))

    duration_s = await closed_loop(questions, clients, one)
    return Round(tuple(answers), duration_s)


def _over_http(http: httpx.AsyncClient, route: str) -> Ask:
    async def ask(question: str) -> Answered:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
            "switchyard": {"route": route, "cite": False},
        }
        start = time.perf_counter()
        chunks: list[Chunk] = []
        num_tokens = 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise SwitchyardError(f"the server answered {response.status_code}: {(await response.aread())!r}")
            async for event in _events(response):
                at_s = time.perf_counter() - start
                chunks += [Chunk(at_s, choice["delta"].get("content", "")) for choice in event["choices"]]
                num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        return _answered(chunks, num_tokens, time.perf_counter() - start)

    return ask


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line:
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise SwitchyardError(event["error"]["message"])
            yield event
    raise SwitchyardError("a stream ended before it was complete")


def _in_process(engine: Engine) -> Ask:
    ids = itertools.count()

    async def ask(question: str) -> Answered:
        start = time.perf_counter()
        request = GenerationRequest(
            f"bench-{next(ids)}", (Message("user", question),), sampling=SamplingParams(max_tokens=MAX_TOKENS)
        )
        chunks: list[Chunk] = []
        num_tokens = 0
        async for delta in engine.submit(request):
            chunks.append(Chunk(time.perf_counter() - start, delta.text))
            num_tokens += delta.num_tokens
        return _answered(chunks, num_tokens, time.perf_counter() - start)

    return ask


def _answered(chunks: Sequence[Chunk], num_tokens: int, latency_s: float) -> Answered:
    first_s = ttft_s(chunks)
    return Answered(Served(first_s, tpot_s(latency_s, first_s, num_tokens) if num_tokens > 1 else None), num_tokens)


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """A `switchyard serve` with its own state, holding docs/; ended with everything it started."""
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder, running_server(Path(folder)) as url:
        subprocess.run([SWITCHYARD, "ingest", str(DOCS), "--url", url, "--json"], check=True, capture_output=True)
        yield url
