"""What drafts bring our engine where an answer copies its prompt, and cost it where one does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from loadtest.bench_format import OURS, Ratio, Row, paired_ratio, spread
from loadtest.generation.systems import OurEngine
from loadtest.generation.workloads import Job, copying_jobs, free_jobs

if TYPE_CHECKING:
    from loadtest.bench_generation import Findings
    from loadtest.generation.workloads import Trace

METRIC, UNIT, OFF = "output_tok_s", "tokens/s", "drafts off"


async def race(
    ours: OurEngine,
    trace: Trace,
    cases: dict[int, int],
    rounds: int,
    found: Findings,
    console: Console,
    vocab_size: int,
    prefix: str = "",
) -> None:
    """For each number of clients, with drafts and without, in turn: answers that copy, and answers to noise."""
    for clients, count in cases.items():
        console.print(
            f"{prefix}drafts c={clients}: {rounds} rounds of {count} answers that copy, and of {count} others ..."
        )
        noise = [replace(job, drafts=True) for job in free_jobs(count, seed=clients, vocab_size=vocab_size)]
        for case, jobs in (("copied", copying_jobs(trace, count)), ("drafted noise", noise)):
            plain = [replace(job, drafts=False) for job in jobs]
            with_drafts, without = [], []
            for _ in range(rounds):
                with_drafts.append(await _rate(ours, jobs, clients))
                without.append(await _rate(ours, plain, clients))
            name = f"{prefix}{case} c={clients}"
            found.rows.append(Row(name, OURS, METRIC, UNIT, *spread(with_drafts)))
            found.rows.append(Row(name, OFF, METRIC, UNIT, *spread(without)))
            found.ratios.append(Ratio(name, METRIC, OFF, *paired_ratio(with_drafts, without, higher_is_better=True)))


async def _rate(ours: OurEngine, jobs: Sequence[Job], clients: int) -> float:
    return sum(job.num_output for job in jobs) / await ours.seconds(jobs, clients)
