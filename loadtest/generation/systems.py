"""The systems that the generation bench races, behind one call: run these jobs, so many at a time."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from engine.generation.protocol import GenerationEngine
from engine.values import GenerationRequest, SamplingParams
from loadtest.closed_loop import closed_loop
from loadtest.generation.workloads import Job
from loadtest.peers import llama_cpp

WORKER_START_S = 120
WORKER_LINE_BYTES = 16 * 1024 * 1024


class System(Protocol):
    """Something that generates."""

    name: str

    async def seconds(self, jobs: Sequence[Job], clients: int) -> float:
        """Time to answer all jobs with `clients` of them in progress at once."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer of our engine: arrival of each token in seconds after its request."""

    arrivals_s: tuple[float, ...]
    num_cached: int


class OurEngine:
    """The engine in this process."""

    name = "switchyard"

    def __init__(self, engine: GenerationEngine, *, knows_prompts: bool = False) -> None:
        """`knows_prompts`: the prefix cache holds the prompts of a call before its clock starts."""
        self._engine = engine
        self._knows_prompts = knows_prompts
        self._ids = itertools.count()
        self._salt = itertools.count()

    async def seconds(self, jobs: Sequence[Job], clients: int) -> float:
        """See System. Each call begins with a prefix cache of its own: its salt is."""
        salt = f"bench {self._knows_prompts} {next(self._salt)}"
        for job in jobs if self._knows_prompts else ():
            await self.answer(replace(job, num_output=1), salt)

        async def run(job: Job) -> None:
            await self.answer(job, salt)

        return await closed_loop(jobs, clients, run)

    def knowing_prompts(self) -> OurEngine:
        """The same engine; what it is asked stands in its prefix cache already, so that only answers take time."""
        return OurEngine(self._engine, knows_prompts=True)

    async def answer(self, job: Job, salt: str) -> Timed:
        """Answer one job; raises ValueError when it has another length than asked for."""
        sampling = SamplingParams(max_tokens=job.num_output, ignore_eos=True)
        request = GenerationRequest(
            str(next(self._ids)),
            (),
            sampling=sampling,
            adapter=job.adapter or None,
            prompt_token_ids=job.prompt,
            cache_salt=salt,
            drafts=job.drafts,
        )
        arrivals: list[float] = []
        cached = 0
        started = time.perf_counter()
        async for delta in self._engine.submit(request):
            arrivals += [time.perf_counter() - started] * delta.num_tokens
            if delta.prompt is not None:
                cached = delta.prompt.num_cached_tokens
        if len(arrivals) != job.num_output:
            raise ValueError(f"{len(arrivals)} tokens arrived, {job.num_output} were asked for")
        return Timed(tuple(arrivals), cached)

    async def token_ids(self, job: Job) -> list[int]:
        """The greedy answer to one job, as ids."""
        sampling = SamplingParams(max_tokens=job.num_output, ignore_eos=True, logprobs=0)
        request = GenerationRequest(
            str(next(self._ids)),
            (),
            sampling=sampling,
            adapter=job.adapter or None,
            prompt_token_ids=job.prompt,
            drafts=job.drafts,
        )
        return [token.token_id async for delta in self._engine.submit(request) for token in delta.logprobs]


class TransformersPeer:
    """`generate` or `generate_batch`, in the worker's process."""

    def __init__(self, worker: asyncio.subprocess.Process, system: str) -> None:
        self.name = f"transformers {system}"
        self._worker = worker
        self._system = system

    async def seconds(self, jobs: Sequence[Job], clients: int) -> float:
        """See System; the worker's own clock."""
        request = {
            "system": self._system,
            "prompts": [job.prompt for job in jobs],
            "num_output": [job.num_output for job in jobs],
            "clients": clients,
        }
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(request).encode() + b"\n")
        await self._worker.stdin.drain()
        reply = await _reply(self._worker)
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {reply['error']}")
        seconds: float = reply["seconds"]
        return seconds


@asynccontextmanager
async def transformers_worker(
    model: Path, threads: int, dtype: str, device: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The worker's process, ready; ended afterwards."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.peers.transformers_worker", str(model), str(threads), dtype, device),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        limit=WORKER_LINE_BYTES,
        cwd=Path(__file__).parents[2],
    )
    try:
        async with asyncio.timeout(WORKER_START_S):
            await _reply(worker)
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


async def _reply(worker: asyncio.subprocess.Process) -> dict[str, Any]:
    assert worker.stdout is not None
    line = await worker.stdout.readline()
    if not line:
        raise RuntimeError("the process with transformers ended")
    reply: dict[str, Any] = json.loads(line)
    return reply


class LlamaCpp:
    """A running llama-server."""

    name = "llama.cpp"

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def seconds(self, jobs: Sequence[Job], clients: int) -> float:
        """See System. The caller starts a server anew for an empty cache."""

        async def run(job: Job) -> None:
            body = {
                "prompt": job.prompt,
                "n_predict": job.num_output,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": True,
                "return_tokens": True,
            }
            response = await self._http.post("/completion", json=body)
            response.raise_for_status()
            found = response.json()["tokens_predicted"]
            if found != job.num_output:
                raise ValueError(f"llama.cpp gave {found} tokens, {job.num_output} were asked for")

        return await closed_loop(jobs, clients, run)


class LlamaSetting(NamedTuple):
    """How a llama-server runs: one of its formats, requests at once, threads, and how it guesses."""

    weights: str
    slots: int
    threads: int
    speculation: str = "none"

    def __str__(self) -> str:
        words = f"{self.weights}, {self.slots} slots, {self.threads} threads"
        return words if self.speculation == "none" else f"{words}, {self.speculation}"


@asynccontextmanager
async def llama_server(setting: LlamaSetting, jobs: Sequence[Job]) -> AsyncIterator[LlamaCpp]:
    """A llama-server whose slots are long enough for each of the jobs."""
    weights, slots, threads, speculation = setting
    longest = max(len(job.prompt) + job.num_output for job in jobs) + 16
    loop = asyncio.get_running_loop()
    manager = llama_cpp.server(weights, slots=slots, slot_tokens=longest, threads=threads, speculation=speculation)
    url = await loop.run_in_executor(None, manager.__enter__)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
            yield LlamaCpp(http)
    finally:
        await loop.run_in_executor(None, manager.__exit__, None, None, None)
