"""The case `freshness`: what searches over HTTP wait while the collection follows a change of its documents.

A server of its own, with the default models, holds one version of the pages. Clients search in a closed loop, each
asking again as soon as it is answered: first without writes, then while `switchyard ingest --sync` brings the other
version, and so on in turn, there and back. Afterwards single documents are put under the same load, and the time counts
from sending one to the first search that finds it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from rich.console import Console

from engine.errors import SwitchyardError
from loadtest.bench_format import OURS
from loadtest.measures import percentile
from loadtest.retrieval.findings import Findings
from loadtest.retrieval.versions import Folders, write_versions
from loadtest.server import SWITCHYARD, running_server

CASE, WITHOUT = "freshness", "without writes"
CLIENTS = 8
K = 10
_SOURCE = "pages"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FreshnessPlan:
    """How much is measured: pages of each version (None for all), rounds, seconds without writes, single puts."""

    num_pages: int | None
    rounds: int
    quiet_s: float
    puts: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered search: when it was sent (`time.perf_counter`), how long it took, and what it says."""

    sent_s: float
    latency_s: float
    version: int
    passages: list[dict[str, Any]]


def measure_freshness(
    plan: FreshnessPlan, questions: Sequence[str], options: Sequence[str], found: Findings, console: Console
) -> None:
    """Start a server with `options` (of `switchyard serve`), measure, and end it with everything it started."""
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder:
        versions = write_versions(Path(folder), plan.num_pages)
        found.extra["freshness_pages"] = versions.description
        console.print(f"{CASE}: starting a server and ingesting {versions.description} ...")
        with running_server(Path(folder), *options) as url:
            asyncio.run(_measure(url, versions, plan, questions, found, console))


async def _measure(
    url: str, versions: Folders, plan: FreshnessPlan, questions: Sequence[str], found: Findings, console: Console
) -> None:
    await sync(url, versions.old)
    console.print(f"{CASE}: {plan.rounds} rounds of {CLIENTS} clients without writes and during a sync, in turn ...")
    quiet: list[list[float]] = []
    during: list[list[float]] = []
    reports = []
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        await searching(http, questions, asyncio.sleep(1))
        for number in range(plan.rounds):
            answers, _ = await searching(http, questions, asyncio.sleep(plan.quiet_s))
            quiet.append([1e3 * answer.latency_s for answer in answers])
            target = versions.new if number % 2 == 0 else versions.old
            answers, report = await searching(http, questions, sync(url, target))
            during.append([1e3 * answer.latency_s for answer in answers])
            reports.append(report)
        _, first_hits = await searching(http, questions, _first_hits(http, plan.puts))
    for system, rounds in ((OURS, during), (WITHOUT, quiet)):
        for percent in (50, 95):
            found.add(CASE, system, f"latency_p{percent}", "ms", [percentile(one, percent) for one in rounds])
    rates = [report["embedded"] / report["seconds"] for report in reports]
    found.add(CASE, OURS, "embedded_per_s", "passages/s", rates)
    for percent in (50, 99):
        found.add(CASE, OURS, f"put_to_first_hit_p{percent}", "ms", [percentile(first_hits, percent)])
    p95 = [[percentile(one, 95) for one in rounds] for rounds in (during, quiet)]
    found.compare(CASE, "latency_p95", WITHOUT, *p95, higher=False)


async def searching(
    http: httpx.AsyncClient, questions: Sequence[str], work: Awaitable[T], *, clients: int = CLIENTS, **fields: Any
) -> tuple[list[Answer], T]:
    """Search from `clients` at once for as long as `work` takes; `fields` go into each request.

    Returns: every answer, in the order of arrival, and what `work` returned.
    Raises: SwitchyardError for a search that is not answered with 200.
    """
    answers: list[Answer] = []
    asked = itertools.cycle(questions)
    is_over = False

    async def client() -> None:
        while not is_over:
            sent_s = time.perf_counter()
            body = await _search(http, next(asked), **fields)
            latency_s = time.perf_counter() - sent_s
            answers.append(Answer(sent_s, latency_s, body["version"], body["results"][0]))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        try:
            result = await work
        finally:
            is_over = True
    return answers, result


async def sync(url: str, folder: Path, *, collection: str = "default") -> dict[str, Any]:
    """Run `switchyard ingest --sync` and return its report. Raises: SwitchyardError where it fails."""
    options = ("--source", _SOURCE, "--collection", collection, "--sync", "--json", "--url", url)
    process = await asyncio.create_subprocess_exec(
        SWITCHYARD, "ingest", folder, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise SwitchyardError(f"switchyard ingest ended with {process.returncode}: {errors.decode().strip()[-500:]}")
    report: dict[str, Any] = json.loads(output)
    return report


async def _first_hits(http: httpx.AsyncClient, puts: int) -> list[float]:
    """Milliseconds from sending a document to the first search that finds it, one after another."""
    waits = []
    for number in range(puts):
        name = f"put/{number}.md"
        text = f"# Release note {number}\n\nThe codeword of this release is zyx{number}qwv, and it is out today."
        sent_s = time.perf_counter()
        path = f"/v1/collections/default/documents/{quote(name)}"
        (await http.put(path, json={"text": text})).raise_for_status()
        while not any(hit["document"] == name for hit in (await _search(http, f"zyx{number}qwv"))["results"][0]):
            pass
        waits.append(1e3 * (time.perf_counter() - sent_s))
    return waits


async def _search(http: httpx.AsyncClient, question: str, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/search", json={"query": question, "k": K, **fields})
    if response.status_code != 200:
        raise SwitchyardError(f"the server answered a search with {response.status_code}: {response.text[:300]}")
    body: dict[str, Any] = response.json()
    return body
