"""Tokens a second in bfloat16, ours and transformers' `generate` and `generate_batch` in turn; what adapters cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.config import GeneratorSettings, usable_cores
from engine.generation.engine import Engine
from loadtest.bench_format import OURS
from loadtest.generation import adapters
from loadtest.generation.plan import BATCH, GENERATE
from loadtest.generation.systems import OurEngine, System, TransformersPeer, transformers_worker
from loadtest.generation.workloads import Job, Trace, free_jobs, read_trace
from loadtest.gpu.record import Budget, Record

DTYPE = "bfloat16"
# Three rounds of a case at 30 ms a token of each system, and of what four rounds of four runs with adapters take.
CASE_S, LORA_S = 18.0, 30.0
_WARM_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Cases in order, as (workload, clients, jobs of a round): the first matter most, the last may find no time."""

    cases: tuple[tuple[str, int, int], ...]
    rounds: int
    lora: dict[int, int]
    lora_rounds: int
    kv_tokens: int = 65536
    most_output: int = 1 << 30  # tokens of an answer


# What a bar or a row of the comparison asks for comes first.
FULL = Plan(
    (
        ("free", 64, 64),
        ("free", 8, 8),
        ("free", 1, 1),
        ("rag", 8, 16),
        ("rag", 64, 64),
        ("rag", 1, 2),
        ("free", 128, 128),
    ),
    rounds=3,
    lora={32: 32},
    lora_rounds=3,
)
QUICK = Plan((("free", 64, 64), ("free", 8, 8), ("free", 1, 1), ("rag", 8, 8)), rounds=2, lora={32: 32}, lora_rounds=2)
DRY = Plan(
    (("free", 64, 64), ("free", 1, 1), ("rag", 2, 2)),
    rounds=1,
    lora={2: 2},
    lora_rounds=1,
    kv_tokens=16384,
    most_output=4,
)


def race_shape(record: Record, shape: str, model: Path, device: str, plan: Plan, budget: Budget) -> None:
    """All cases of the plan for which there is time, each noted on its own."""
    settings = GeneratorSettings(
        dtype=DTYPE, max_num_seqs=128, max_batched_tokens=2048, kv_tokens=plan.kv_tokens, threads=usable_cores()
    )
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            worker = runner.run(stack.enter_async_context(transformers_worker(model, usable_cores(), DTYPE, device)))
            peers = [TransformersPeer(worker, name.removeprefix("transformers ")) for name in (GENERATE, BATCH)]
            engine = Engine(model, settings, device=device)
            stack.callback(engine.close)
            ours, trace = OurEngine(engine), read_trace().within(engine.vocab_size)
            systems: tuple[System, ...] = (ours, *peers)
            for workload, clients, count in plan.cases:
                jobs = [
                    replace(job, num_output=min(job.num_output, plan.most_output))
                    for job in _jobs(workload, count, trace, engine.vocab_size)
                ]
                name = f"{shape} {workload} c={clients}"
                race = partial(_run_race, runner, record, name, jobs, clients, systems, plan.rounds, budget)
                record.attempt(name, race, estimate_s=CASE_S)
            # The first round compiles kernels for, and records, steps with adapters.
            lora = adapters.race(
                *(engine, ours, model, trace, plan.lora, plan.lora_rounds, record.found, record.console, f"{shape} "),
                warm_ups=1,
            )
            if not record.attempt(f"{shape} lora8", lambda: runner.run(lora), estimate_s=LORA_S):
                lora.close()
        finally:
            runner.run(stack.aclose())


def _run_race(runner: asyncio.Runner, *arguments: Any) -> None:
    runner.run(_race(*arguments))


def _jobs(workload: str, count: int, trace: Trace, vocab_size: int) -> list[Job]:
    return free_jobs(count, seed=count, vocab_size=vocab_size) if workload == "free" else trace.jobs()[:count]


async def _race(
    record: Record,
    case: str,
    jobs: Sequence[Job],
    clients: int,
    systems: Sequence[System],
    rounds: int,
    budget: Budget,
) -> None:
    """Rounds in turn; fewer where the next one would not end in time."""
    num_tokens = sum(job.num_output for job in jobs)
    rates: dict[str, list[float]] = {}
    round_s = 0.0
    present = []
    for system in systems:  # kernels are compiled, and steps recorded, before the clock counts
        try:
            await system.seconds([replace(job, num_output=_WARM_TOKENS) for job in jobs], clients)
            present.append(system)
        except RuntimeError as error:
            if system.name == OURS:
                raise
            record.found.extra.setdefault("missing", {})[f"{case}: {system.name}"] = str(error)[:300]
            record.console.print(f"{case}: {error} takes no part", markup=False, soft_wrap=True)
    for _ in range(rounds):
        if budget.left_s() < 1.2 * round_s:
            break
        started = time.monotonic()
        for system in present:
            rates.setdefault(system.name, []).append(num_tokens / await system.seconds(jobs, clients))
        round_s = time.monotonic() - started
    record.found.add_case(case, rates)
    words = ", ".join(f"{name} {max(values):.0f}" for name, values in rates.items())
    record.console.print(f"{case}: best tokens/s {words}", markup=False, soft_wrap=True)
