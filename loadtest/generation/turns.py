"""One case: each system answers the same jobs, in turn, round by round."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from loadtest.generation.peer_choice import PeerChoice, llama_rate
from loadtest.generation.plan import LLAMA, Findings, Plan
from loadtest.generation.systems import System
from loadtest.generation.workloads import Job


async def race_case(
    case: str,
    jobs: Sequence[Job],
    clients: int,
    systems: Sequence[System],
    plan: Plan,
    found: Findings,
    console: Console,
    choice: PeerChoice | None = None,
) -> None:
    """Race the systems, ours first. llama.cpp joins where there is a `choice`, with its best settings on a first round.

    The same clients wait for each system; only the time until all tokens are there counts.
    """
    console.print(f"{case}: {plan.rounds} rounds of {len(jobs)} requests for each system, in turn ...")
    num_tokens = sum(job.num_output for job in jobs)
    best = None if choice is None else await choice.llama(case, jobs[: max(clients, 2)], clients)
    rates: dict[str, list[float]] = {}
    for number in range(plan.rounds):
        for system in systems:
            if number < plan.rounds_of(system.name):
                rates.setdefault(system.name, []).append(num_tokens / await system.seconds(jobs, clients))
        if best is not None and number < plan.rounds_of(LLAMA):
            rates.setdefault(LLAMA, []).append(await llama_rate(best, jobs, clients))
    found.add_case(case, rates)
