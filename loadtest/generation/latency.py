"""Time to the first token, cold and warm, and gaps between tokens while long prompts arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from loadtest.bench_format import OURS, Ratio, Row, paired_ratio, spread
from loadtest.generation.plan import Findings, Plan
from loadtest.generation.systems import OurEngine
from loadtest.generation.workloads import Job, Trace, free_jobs
from loadtest.measures import percentile


async def ttft(ours: OurEngine, trace: Trace, plan: Plan, found: Findings, prefix: str) -> None:
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


async def gaps(ours: OurEngine, trace: Trace, plan: Plan, found: Findings, prefix: str) -> None:
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
    jobs = free_jobs(8, seed=5, vocab_size=300)  # without drafts, whose tokens come at once
    decoding = [asyncio.create_task(ours.answer(replace(job, num_output=200), salt)) for job in jobs]
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    for number, job in enumerate(arriving):
        await ours.answer(job, f"{salt} {number}")
    if arriving and len(arriving[0].prompt) > 1000 and all(task.done() for task in decoding):
        raise RuntimeError(f"the answers ended before the prompts did ({time.perf_counter() - start:.1f} s)")
    answers = await asyncio.gather(*decoding)
    return [later - earlier for answer in answers for earlier, later in pairwise(answer.arrivals_s[1:])]
