"""What drafts bring our engine where an answer copies its prompt, and bring or cost it where the prompt is noise.

llama.cpp takes part where answers copy, with the best of its own ways to guess from what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from loadtest.generation.peer_choice import PeerChoice
from loadtest.generation.plan import Findings, Plan
from loadtest.generation.systems import OurEngine
from loadtest.generation.turns import race_case
from loadtest.generation.workloads import Job, Trace, copying_jobs, free_jobs


class DraftsOff:
    """Our engine, which computes one token at a time."""

    name = "drafts off"

    def __init__(self, ours: OurEngine) -> None:
        self._ours = ours

    async def seconds(self, jobs: Sequence[Job], clients: int) -> float:
        """See System."""
        return await self._ours.seconds([replace(job, drafts=False) for job in jobs], clients)


async def race(
    ours: OurEngine,
    trace: Trace,
    plan: Plan,
    found: Findings,
    console: Console,
    vocab_size: int,
    *,
    with_llama: bool,
    prefix: str = "",
) -> None:
    """For each number of clients, with drafts and without, in turn: answers that copy, and answers to noise.

    Where the prompt is computed as well, it takes most of the time, and drafts change nothing of that. So answers that
    copy are timed with their prompts in the prefix cache, too.
    """
    choice = PeerChoice(plan, found, with_llama)
    known = ours.knowing_prompts()
    systems, warm = (ours, DraftsOff(ours)), (known, DraftsOff(known))
    for clients, count in plan.copied.items():
        copying = copying_jobs(trace, count)
        noise = [replace(job, drafts=True) for job in free_jobs(count, seed=clients, vocab_size=vocab_size)]
        await race_case(f"{prefix}copied c={clients}", copying, clients, systems, plan, found, console, choice)
        await race_case(f"{prefix}copied, prompt known c={clients}", copying, clients, warm, plan, found, console)
        await race_case(f"{prefix}drafted noise c={clients}", noise, clients, systems, plan, found, console)
