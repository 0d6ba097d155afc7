"""`switchyard bench serving`: what HTTP, Ray Serve and the gateway cost over the same engine in one process.

A server and an engine of its own run on the same machine, and take turns: server, engine, server, engine ... Each
round sends the same questions from `c` clients that each wait for their answer before asking again (closed loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import aiohttp
from rich.console import Console

from engine.config import EngineConfig
from engine.generation.engine import Engine
from engine.models import resolve_model
from engine.values import GenerationRequest, Message, SamplingParams
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread
from loadtest.closed_loop import closed_loop
from loadtest.measures import Chunk
from loadtest.questions import read_questions
from loadtest.server import SWITCHYARD, running_server
from loadtest.streamed_rounds import Answered, Ask, Round, answered, ask_all, check, over_http, session

PEER = "in-process engine"
QUESTIONS = Path(__file__).with_name("serving_questions.jsonl")
DOCS = Path(__file__).parents[1] / "docs"
MAX_TOKENS = 64
_CLIENTS, _QUICK_CLIENTS = (1, 8, 32), (1, 8)
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
    rounds, per_client, clients = (3, 1, _QUICK_CLIENTS) if quick else (5, 2, _CLIENTS)
    config = EngineConfig()
    model = resolve_model(config.generator.model, kind="generator", show_progress=True)
    resolve_model(config.retriever.model, kind="encoder", show_progress=True)
    questions = read_questions(QUESTIONS)
    console.print("starting a server and ingesting docs/ ...")
    with _server() as url:
        engine = Engine(model.path, config.generator)
        try:
            report = asyncio.run(_measure(url, engine, questions, rounds, per_client, clients, console))
        finally:
            engine.close()
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)


async def _measure(
    url: str,
    engine: Engine,
    questions: Sequence[str],
    rounds: int,
    per_client: int,
    all_clients: Sequence[int],
    console: Console,
) -> Report:
    rows: list[Row] = []
    ratios: list[Ratio] = []
    async with session(url) as http:
        direct, rag = (over_http(http, route, max_tokens=MAX_TOKENS) for route in ("direct", "rag"))
        in_process = _in_process(engine)
        for ask in (direct, rag, in_process):
            await ask_all(ask, questions[:2], clients=2)  # warm-up
        for clients in all_clients:
            asked = list(itertools.islice(itertools.cycle(questions), max(clients, 2) * per_client))
            console.print(f"c={clients}: {rounds} rounds of {len(asked)} questions for each system, in turn ...")
            ours, peer, ours_rag = [], [], []
            for _ in range(rounds):
                ours.append(await ask_all(direct, asked, clients))
                peer.append(await ask_all(in_process, asked, clients))
                ours_rag.append(await ask_all(rag, asked, clients))
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


async def _search_row(http: aiohttp.ClientSession, questions: Sequence[str], clients: int, rounds: int) -> Row:
    async def search(question: str) -> None:
        async with http.post("/v1/search", json={"query": question}) as response:
            await check(response)
            await response.read()

    rates = []
    for _ in range(rounds):
        asked = [*questions, *questions]
        rates.append(len(asked) / await closed_loop(asked, clients, search))
    return Row(f"search c={clients}", OURS, "queries_s", "queries/s", *spread(rates))


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
        return answered(chunks, num_tokens, time.perf_counter() - start)

    return ask


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """A `switchyard serve` with its own state, holding docs/; ended with everything it started."""
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder, running_server(Path(folder)) as url:
        subprocess.run([SWITCHYARD, "ingest", str(DOCS), "--url", url, "--json"], check=True, capture_output=True)
        yield url
