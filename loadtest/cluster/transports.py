"""What each hop and each transport between the parts costs: servers that differ in one setting, visited in turn.

python -m loadtest.cluster.transports --json FILE     about 10 minutes on 2 cores
python -m loadtest.cluster.transports --quick

The generator is a model of three small layers with random weights: what is measured is the way, not the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console

from engine.errors import SwitchyardError
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread
from loadtest.closed_loop import closed_loop
from loadtest.generation.random_checkpoint import write_checkpoint
from loadtest.measures import percentile
from loadtest.server import running_server
from loadtest.streamed_rounds import ask_all, check, over_http, session

_MAX_TOKENS = 64
_QUESTION = "w7 w11 w13 w17"


@dataclass(frozen=True, slots=True)
class Variant:
    """A server that differs from `switchyard` as it ships."""

    name: str
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant(OURS),
    Variant("router: deployment", options=("--set", "router.placement=deployment")),
    Variant("actor calls between deployments", environment={"RAY_SERVE_USE_GRPC_BY_DEFAULT": "0"}),
    Variant("Ray's proxy", environment={"RAY_SERVE_ENABLE_HA_PROXY": "0"}),
    Variant("throughput switches", environment={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}),
)
# Metric of each case, its unit, and whether more of it is better.
CASES = {
    "first token c=1": ("ttft_p50", "ms", False),
    "first token c=8": ("ttft_p50", "ms", False),
    "tokens c=32": ("output_tok_s", "tokens/s", True),
    "search c=1": ("latency_p50", "ms", False),
    "search c=8": ("queries_s", "queries/s", True),
}


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a server does not start or refuses."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.cluster.transports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one visit to each server, few requests")
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    try:
        report = measure(visits=1 if options.quick else 3, per_client=4 if options.quick else 12, console=console)
    except SwitchyardError as error:
        console.print(str(error), markup=False)
        return 1
    report.print_table(Console())
    if options.json is not None:
        report.write_json(options.json)
    return 0


def measure(*, visits: int, per_client: int, console: Console, variants: Sequence[Variant] = VARIANTS) -> Report:
    """Visit all variants `visits` times, in turn."""
    found: dict[str, dict[str, list[float]]] = {variant.name: {case: [] for case in CASES} for variant in variants}
    with tempfile.TemporaryDirectory(prefix="switchyard-transports-") as folder:
        model = write_checkpoint(Path(folder) / "model", "tiny")
        for visit, variant in itertools.product(range(visits), variants):
            console.print(f"visit {visit + 1} of {visits}: {variant.name}", markup=False)
            home = Path(folder) / f"{visit}-{variants.index(variant)}"
            home.mkdir()
            options = ("--set", f"generator.model={model}", *variant.options)
            with running_server(home, *options, environment=variant.environment) as url:
                for case, value in asyncio.run(_visit(url, per_client)).items():
                    found[variant.name][case].append(value)
    rows = [
        Row(case, variant.name, metric, unit, *spread(found[variant.name][case]))
        for case, (metric, unit, _) in CASES.items()
        for variant in variants
    ]
    ratios = [
        Ratio(
            case, metric, variant.name, *paired_ratio(found[OURS][case], found[variant.name][case], higher_is_better=up)
        )
        for case, (metric, _, up) in CASES.items()
        for variant in variants[1:]
    ]
    extra = {
        "workload": f"three small layers of random weights, max_tokens {_MAX_TOKENS}, {per_client} requests of each "
        f"client, closed loop, {visits} visits to each server in turn; client on the same cores"
    }
    return Report("transports", rows, ratios, extra)


async def _visit(url: str, per_client: int) -> dict[str, float]:
    async with session(url) as http:
        await _ingest(http)
        direct = over_http(http, "direct", max_tokens=_MAX_TOKENS)
        await ask_all(direct, [_QUESTION] * 16, 8)  # warm-up
        await _search_s(http, 16, 8)
        one = await ask_all(direct, [_QUESTION] * (2 * per_client), 1)
        eight = await ask_all(direct, [_QUESTION] * (8 * per_client), 8)
        many = await ask_all(direct, [_QUESTION] * (32 * per_client), 32)
        return {
            "first token c=1": one.ttft_ms(),
            "first token c=8": eight.ttft_ms(),
            "tokens c=32": many.output_tok_s(),
            "search c=1": 1e3 * percentile((await _search_s(http, 4 * per_client, 1))[1], 50),
            "search c=8": 32 * per_client / (await _search_s(http, 32 * per_client, 8))[0],
        }


async def _ingest(http: aiohttp.ClientSession) -> None:
    for number in range(20):
        text = f"Page {number}. " + "The retriever follows a log of operations. " * 8
        async with http.put(f"/v1/collections/default/documents/{number}.md", json={"text": text}) as answer:
            await check(answer)


async def _search_s(http: aiohttp.ClientSession, num_searches: int, clients: int) -> tuple[float, list[float]]:
    """Seconds of all searches, and of each."""
    each_s: list[float] = []

    async def search(query: str) -> None:
        started = time.perf_counter()
        async with http.post("/v1/search", json={"query": query, "mode": "dense"}) as answer:
            await check(answer)
            await answer.read()
        each_s.append(time.perf_counter() - started)

    return await closed_loop([f"which log is number {n}?" for n in range(num_searches)], clients, search), each_s


if __name__ == "__main__":
    sys.exit(main())
