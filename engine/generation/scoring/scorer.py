"""Scores continuations inside the running batch.

A node of a continuation tree is a sequence to the scheduler: the root is the prompt, and each node below is forked from
its parent as a branch when that is computed. The logits after a node's last token score the first token of each edge.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from threading import Condition

import torch
from torch import Tensor

from engine.errors import ComponentUnavailable, SwitchyardError
from engine.generation.runner import StepLogits
from engine.generation.scheduler import MAX_BRANCHES, Scheduler
from engine.generation.scoring.request import ScoredPrompt
from engine.generation.scoring.trie import Edge, Node
from engine.generation.sequence import PrefixKey, Sequence
from engine.generation.step import Step
from engine.values import ContinuationScore

Scores = tuple[tuple[ContinuationScore, ...], ...]
# Rows turned into log-probabilities at once, so that their float32 copy stays small.
_ROWS_AT_ONCE = 64


@dataclass(slots=True, eq=False)
class ScoreJob:
    """A request in flight; `future` belongs to `loop`. What follows `is_done` is the engine's thread's."""

    id: str
    prompts: list[ScoredPrompt]
    key: PrefixKey
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Scores]
    is_done: bool = False
    logprobs: list[list[float | None]] = field(default_factory=list)
    num_left: int = 0
    runs: set[_Run] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Run:
    """A node being computed. `base` is the log-probability up to its first token; `scores` are by position."""

    job: ScoreJob
    prompt: int
    node: Node
    sequence: Sequence
    base: float
    scores: dict[int, list[float]] = field(default_factory=dict)
    waiting: deque[tuple[Edge, float]] | None = None  # edges to fork, once all is computed


class Scorer:
    """The score jobs of one engine. `submit`, `end` and `jobs` may be called from any thread."""

    def __init__(self, condition: Condition, on_end: Callable[[ScoreJob], None]) -> None:
        """`condition` is the engine's: it guards the books, and is notified of news. `on_end` is called under it."""
        self._condition = condition
        self._on_end = on_end
        self._jobs: dict[str, ScoreJob] = {}
        self._inbox: list[ScoreJob] = []
        self._ended: list[ScoreJob] = []
        self._runs: dict[Sequence, _Run] = {}
        self._next_id = 0

    @property
    def num_prompts(self) -> int:
        """Prompts of all jobs in flight."""
        return sum(len(job.prompts) for job in list(self._jobs.values()))

    @property
    def has_news(self) -> bool:
        """Whether jobs came or ended since `take`."""
        return bool(self._inbox or self._ended)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def submit(self, job: ScoreJob) -> None:
        """Queue a job. Under the lock."""
        self._jobs[job.id] = job
        self._inbox.append(job)
        self._condition.notify()

    def end(self, job: ScoreJob, outcome: Scores | SwitchyardError | None) -> None:
        """End a job, telling whoever waits for it; one that has ended is left alone."""
        with self._condition:
            if job.is_done:
                return
            job.is_done = True
            del self._jobs[job.id]
            self._ended.append(job)
            self._on_end(job)
            self._condition.notify()
        with suppress(RuntimeError):  # its loop is closed: nobody waits any more
            job.loop.call_soon_threadsafe(_resolve, job.future, outcome)

    def jobs(self) -> list[ScoreJob]:
        """Those in flight."""
        return list(self._jobs.values())

    # What follows runs in the engine's thread.

    def take(self) -> tuple[list[ScoreJob], list[ScoreJob]]:
        """The jobs that came and those that ended since the last call. Under the lock."""
        arrived, self._inbox = self._inbox, []
        ended, self._ended = self._ended, []
        return arrived, ended

    def take_in(self, arrived: SequenceOf[ScoreJob], ended: SequenceOf[ScoreJob], scheduler: Scheduler) -> None:
        """Queue the prompts of new jobs, and take out the sequences of those that ended."""
        for job in arrived:
            if job.is_done:
                continue
            job.logprobs = [[None] * len(prompt.lengths) for prompt in job.prompts]
            job.num_left = sum(len(prompt.lengths) for prompt in job.prompts)
            for index, prompt in enumerate(job.prompts):
                longest = len(prompt.tokens) + max(prompt.lengths)
                sequence = self._sequence(job, list(prompt.tokens), longest)
                self._add(_Run(job, index, prompt.tree, sequence, 0.0))
                scheduler.add(sequence)
        for job in ended:
            for run in list(job.runs):
                self._drop(run, scheduler)

    def fork(self, scheduler: Scheduler) -> list[tuple[int, int]]:
        """Start branches of computed nodes, as many as there is room for. Returns the KV blocks to copy, (from, to)."""
        ready = [run for run in self._runs.values() if run.waiting and _is_computed(run.sequence)]
        # Depth first, prompt by prompt: nodes whose branches wait hold blocks, so there should be few of them.
        ready.sort(key=lambda run: (run.sequence.arrival, -len(run.sequence.tokens)))
        edges = ((run, edge, base) for run in ready for edge, base in run.waiting or ())
        wanted = [(run, self._branch(run, edge, base)) for run, edge, base in islice(edges, MAX_BRANCHES)]
        if not wanted:
            return []
        num_forked, copies = scheduler.fork([(parent.sequence, branch.sequence) for parent, branch in wanted])
        for parent, branch in wanted[:num_forked]:
            self._add(branch)
            assert parent.waiting
            parent.waiting.popleft()
            if not parent.waiting:
                self._drop(parent, scheduler)
        return copies

    def read(self, step: Step, output: StepLogits) -> None:
        """Note what a step's logits say of its nodes. Reading a step again changes nothing.

        Raises: ValueError for logits that are no numbers.
        """
        rows: list[int] = []
        tokens: list[int] = []
        places: list[tuple[_Run, int, int]] = []
        for sequence, num_tokens, (first, last) in zip(step.sequences, step.num_tokens, output.spans, strict=True):
            run = self._runs.get(sequence)
            if run is None:
                continue
            stop = sequence.num_computed + num_tokens
            for row in range(first, last):
                position = stop - (last - row)
                is_last = position == len(sequence.tokens) - 1
                wanted = [edge.first for edge in run.node.edges] if is_last else [sequence.tokens[position + 1]]
                places.append((run, position, len(wanted)))
                rows += [row] * len(wanted)
                tokens += wanted
        if not rows:
            return
        logprobs = iter(token_logprobs(output.logits, rows, tokens))
        for run, position, count in places:
            run.scores[position] = list(islice(logprobs, count))

    def advance(self, step: Step, scheduler: Scheduler) -> None:
        """After the scheduler finished a step: score what is complete, and queue what follows."""
        for sequence in step.sequences:
            run = self._runs.get(sequence)
            if run is None or not _is_computed(sequence) or run.waiting is not None:
                continue
            self._complete(run)
            if not run.waiting:
                self._drop(run, scheduler)
            if run.job.num_left == 0:
                self.end(run.job, _scores(run.job))

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """A node's step failed by itself, so its job ends."""
        run = self._runs.get(sequence)
        if run is not None:
            self.end(run.job, ComponentUnavailable("generator", f"its step failed: {type(error).__name__}"))

    def _complete(self, run: _Run) -> None:
        sequence, node = run.sequence, run.node
        last = len(sequence.tokens) - 1
        own = range(sequence.num_unscored, last) if node.tokens else ()  # the prompt itself is not scored
        total = run.base + sum(run.scores[position][0] for position in own)
        self._settle(run, node.ends, total)
        run.waiting = deque()
        for edge, logprob in zip(node.edges, run.scores[last], strict=True):
            if edge.node is None:
                self._settle(run, edge.ends, total + logprob)
            else:
                run.waiting.append((edge, total + logprob))

    @staticmethod
    def _settle(run: _Run, ends: SequenceOf[int], logprob: float) -> None:
        for index in ends:
            run.job.logprobs[run.prompt][index] = logprob
            run.job.num_left -= 1

    def _branch(self, run: _Run, edge: Edge, base: float) -> _Run:
        assert edge.node is not None
        sequence = self._sequence(run.job, run.sequence.tokens + list(edge.node.tokens), None)
        sequence.needs_prompt_logits = sequence.is_branch = True
        sequence.num_unscored = len(run.sequence.tokens)
        return _Run(run.job, run.prompt, edge.node, sequence, base)

    def _sequence(self, job: ScoreJob, tokens: list[int], max_total_tokens: int | None) -> Sequence:
        self._next_id += 1
        return Sequence(
            id=f"{job.id}/{self._next_id}",
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            max_total_tokens=max_total_tokens or len(tokens),
            key=job.key,
            deadline_s=None,
        )

    def _add(self, run: _Run) -> None:
        self._runs[run.sequence] = run
        run.job.runs.add(run)

    def _drop(self, run: _Run, scheduler: Scheduler) -> None:
        scheduler.finish(run.sequence)
        del self._runs[run.sequence]
        run.job.runs.discard(run)


def token_logprobs(logits: Tensor, rows: SequenceOf[int], tokens: SequenceOf[int]) -> list[float]:
    """Log-probability of `tokens[i]` after row `rows[i]` of `logits` ([R, V], any float dtype); equal rows adjoin.

    Raises: ValueError where a row holds NaN or infinity.
    """
    row = torch.tensor(rows, device=logits.device)
    used, inverse = torch.unique_consecutive(row, return_inverse=True)
    totals = torch.cat([logits[part].float().logsumexp(-1) for part in used.split(_ROWS_AT_ONCE)])
    values = logits[row, torch.tensor(tokens, device=logits.device)].float() - totals[inverse]
    if not bool(values.isfinite().all()):
        raise ValueError("a row of the logits holds NaN or infinity")
    found: list[float] = values.tolist()
    return found


def _is_computed(sequence: Sequence) -> bool:
    return sequence.status == "running" and sequence.num_new == 0


def _scores(job: ScoreJob) -> Scores:
    return tuple(
        tuple(
            ContinuationScore(logprob, length)
            for logprob, length in zip(logprobs, prompt.lengths, strict=True)
            if logprob is not None
        )
        for logprobs, prompt in zip(job.logprobs, job.prompts, strict=True)
    )


def _resolve(future: asyncio.Future[Scores], outcome: Scores | SwitchyardError | None) -> None:
    if future.done():
        return
    if outcome is None:
        future.cancel()
    elif isinstance(outcome, SwitchyardError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
