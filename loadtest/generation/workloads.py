"""The prompts of the generation bench, as token ids of the default generator's tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

TRACE = Path(__file__).with_name("rag_trace.json")
BLOCK_TOKENS = 16
FREE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt, how many tokens to generate whatever they are, and the adapter, if one.

    `drafts`: whether our engine may guess.
    """

    prompt: tuple[int, ...]
    num_output: int
    adapter: str = ""
    drafts: bool = True


@dataclass(frozen=True, slots=True)
class Trace:
    """A committed trace. A prompt is the system block, four chunks and a question, one after another."""

    system: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]
    requests: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]  # chunks, question, output tokens

    def jobs(self) -> list[Job]:
        """The requests in order."""
        return [Job(self.prompt(chunks, question), count) for chunks, question, count in self.requests]

    def within(self, vocab_size: int) -> Trace:
        """The trace for a smaller vocabulary: ids beyond it come round from its beginning."""

        def fold(ids: Sequence[int]) -> tuple[int, ...]:
            return tuple(token % vocab_size for token in ids)

        requests = tuple((chunks, fold(question), count) for chunks, question, count in self.requests)
        return Trace(fold(self.system), tuple(map(fold, self.chunks)), requests)

    def prompt(self, chunks: Sequence[int], question: Sequence[int]) -> tuple[int, ...]:
        """Token ids of one prompt."""
        return (*self.system, *(token for chunk in chunks for token in self.chunks[chunk]), *question)


def read_trace(path: Path = TRACE) -> Trace:
    """The committed trace."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Trace(
        system=tuple(raw["system"]),
        chunks=tuple(map(tuple, raw["chunks"])),
        requests=tuple((tuple(r["chunks"]), tuple(r["question"]), r["num_output"]) for r in raw["requests"]),
    )


def free_jobs(count: int, *, seed: int, vocab_size: int = 49152) -> list[Job]:
    """Prompts of random tokens, so that nothing is shared, without drafts: a model that reads noise repeats itself.

    Special tokens, which come first, are left out.
    """
    drawn = random.Random(seed)
    prompts = [tuple(drawn.randrange(100, vocab_size) for _ in range(FREE_TOKENS)) for _ in range(count)]
    return [Job(prompt, FREE_TOKENS, drafts=False) for prompt in prompts]


def with_adapters(jobs: Sequence[Job], names: Sequence[str], *, seed: int = 0) -> list[Job]:
    """The jobs with adapters drawn by a power law: the n-th name is asked for 1/n times as often as the first."""
    drawn = random.Random(seed)
    chosen = drawn.choices(names, [1 / (rank + 1) for rank in range(len(names))], k=len(jobs))
    return [replace(job, adapter=name) for job, name in zip(jobs, chosen, strict=True)]


def ideal_reuse(jobs: Sequence[Job]) -> float:
    """Share of prompt tokens that a cache of whole blocks that never forgets saves, the requests one after another.

    The last token of a prompt is always computed, and what was computed with another adapter is of no use.
    """
    known: set[tuple[str, tuple[int, ...]]] = set()
    reused = 0
    for job in jobs:
        is_known = True
        for stop in _block_ends(job.prompt):
            beginning = (job.adapter, job.prompt[:stop])
            is_known = is_known and beginning in known and stop < len(job.prompt)
            reused += BLOCK_TOKENS * is_known
            known.add(beginning)
    return reused / sum(len(job.prompt) for job in jobs)


def _block_ends(prompt: Sequence[int]) -> Iterator[int]:
    return iter(range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS))
