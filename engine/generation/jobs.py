"""The answers in flight: who came and left, which tokens come next, and what their readers get of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import CancelledError, Future
from threading import Condition

from engine.errors import ComponentUnavailable, DeadlineExceeded
from engine.generation.budget import StepBudget
from engine.generation.drafts import DraftRate, may_pay, share_drafts
from engine.generation.grammar.compiler import MAX_COMPILE_S, Compiled, became_too_complex, compile_error, too_slow
from engine.generation.grammar.matcher import MaskFiller
from engine.generation.graphs.draws import NOBODYS_DRAW, Draw
from engine.generation.job import Job
from engine.generation.runner import StepLogits
from engine.generation.sampler import Choice, choose
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import Sequence
from engine.generation.step import Step
from engine.generation.stream import Item, Mailbox, post
from engine.values import Grammar

_log = logging.getLogger(__name__)


class Jobs:
    """The jobs of one engine by id. `end`, `get`, `of` and `all` may be called from any thread."""

    def __init__(self, condition: Condition, on_end: Callable[[Job], None]) -> None:
        """`condition` is the engine's: it guards the books and every job's `is_done`, and is notified of news.

        `on_end` is called under it, once for each job.
        """
        self._condition = condition
        self._on_end = on_end
        self._jobs: dict[str, Job] = {}
        self._inbox: deque[Job] = deque()
        self._ended: list[Job] = []  # sequences to take out of the scheduler

    @property
    def has_news(self) -> bool:
        """Whether jobs came or ended since `take`."""
        return bool(self._inbox or self._ended)

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def get(self, job_id: str) -> Job | None:
        """The job in flight with that id."""
        return self._jobs.get(job_id)

    def of(self, sequence: Sequence) -> Job | None:
        """The job in flight whose sequence that is. Its id alone would not do: a new request may have the id of one
        that was cancelled during the step.
        """
        job = self._jobs.get(sequence.id)
        return job if job is not None and job.sequence is sequence else None

    def all(self) -> list[Job]:
        """Those in flight."""
        return list(self._jobs.values())

    def add(self, job: Job) -> None:
        """Count a job in; it waits for `begin`. Under the lock."""
        self._jobs[job.id] = job

    def begin(self, job: Job) -> None:
        """Let a job join the batch."""
        with self._condition:
            self._inbox.append(job)
            self._condition.notify()

    def begin_when_compiled(self, job: Job, grammar: Grammar, compiled: Future[Compiled]) -> None:
        """Let a job join the batch as soon as its grammar is known; end it where that fails or takes too long."""

        def begin(done: Future[Compiled]) -> None:
            error = CancelledError() if done.cancelled() else done.exception()
            if error is not None:
                self.end(job, compile_error(error))
                return
            job.sampler.matcher = done.result().start()
            self.begin(job)

        def give_up() -> None:
            if not compiled.done():
                self.end(job, too_slow(grammar))

        if not compiled.done():
            job.mailbox.loop.call_later(MAX_COMPILE_S, give_up)
        compiled.add_done_callback(begin)

    def end(self, job: Job, item: Item) -> None:
        """End a job early, telling its reader `item`; one that is complete is left alone."""
        with self._condition:
            if job.is_done:
                return
            self.forget([job])
            self._condition.notify()
        post([(job.mailbox, item)])

    def forget(self, jobs: Iterable[Job]) -> None:
        """Take jobs out of the books, each once; their sequences leave before the next step. Under the lock."""
        for job in jobs:
            if not job.is_done:
                job.is_done = True
                del self._jobs[job.id]
                self._ended.append(job)
                self._on_end(job)

    # What follows runs in the engine's thread.

    def take(self) -> tuple[deque[Job], list[Job]]:
        """The jobs that came and those that ended since the last call. Under the lock."""
        arrived, self._inbox = self._inbox, deque()
        ended, self._ended = self._ended, []
        return arrived, ended

    def take_in(self, arrived: Iterable[Job], ended: Iterable[Job], scheduler: Scheduler, now_s: float) -> None:
        """Queue new sequences, and take out those whose readers left or whose time is up."""
        for job in arrived:
            if not job.is_done:
                scheduler.add(job.sequence)
        for sequence in scheduler.expired(now_s):
            late = self.of(sequence)
            if late is not None and sequence.deadline_s is not None:
                self.end(late, DeadlineExceeded(1000 * (sequence.deadline_s - late.answer.submitted_s)))
            scheduler.finish(sequence)
        for job in ended:
            scheduler.finish(job.sequence)

    def drafts(
        self, decoding: SequenceOf[Sequence], budget: StepBudget, *, max_each: int, max_tokens: int
    ) -> list[list[int]]:
        """Guesses of what comes next for each of the sequences that decode: at most `max_each` tokens, as far as they
        pay, and none beyond a step of `max_tokens` in all.
        """
        nothing: list[list[int]] = [[] for _ in decoding]
        jobs = [self.of(sequence) for sequence in decoding]
        rates = [job.drafting.rate if job is not None and job.drafting else DraftRate() for job in jobs]
        # With many answers at once no draft pays, and finding that out must not cost either.
        if not rates or not may_pay(rates, budget.draft_step_s(len(decoding), 1)):
            return nothing
        guesses = [[] if job is None else job.guess(max_each) for job in jobs]
        if not any(guesses):
            return nothing
        offers = [(rate, len(guess)) for rate, guess in zip(rates, guesses, strict=True)]
        most = min(sum(map(len, guesses)), max_tokens - len(decoding))
        granted = share_drafts(offers, budget.draft_step_s(len(decoding), max(most, 0)))
        return [guess[:count] for guess, count in zip(guesses, granted, strict=True)]

    def need_no_host(self, step: Step) -> bool:
        """Whether every sequence gets one token that the device chooses, and the next after it."""
        jobs = [self.of(sequence) for sequence in step.sequences]
        return all(
            job is not None and job.needs_no_host and job.sequence.is_decoding and not job.sequence.drafts
            for job in jobs
        )

    def draws(self, step: Step) -> list[Draw]:
        """How the device draws the token of each sequence of a step of plain decodes; empty where all are greedy."""
        jobs = [self.of(sequence) for sequence in step.sequences]
        if all(job is None or job.sampler.params.temperature == 0 for job in jobs):
            return []
        return [NOBODYS_DRAW if job is None else job.draw(num_ahead=int(step.is_ahead)) for job in jobs]

    def start(self, step: Step) -> None:
        """A step is about to run."""
        for sequence in step.sequences:
            if (job := self.of(sequence)) is not None:
                job.start()

    def choose(self, step: Step, output: StepLogits, masks: MaskFiller) -> list[list[Choice]]:
        """The next tokens of each sequence of a step: none where tokens of it are not computed, or its job has ended.

        Raises: ValueError for logits that are no numbers; nothing is chosen then.
        """
        due: list[tuple[int, Job]] = []
        for index, sequence in enumerate(step.sequences):
            if (job := self.of(sequence)) is None:
                continue
            if sequence.needs_prompt_logits:
                job.score_prompt(output.logits[slice(*output.spans[index])])
            if step.completes(index):
                due.append((index, job))
        choices: list[list[Choice]] = [[] for _ in step.sequences]
        if not due:
            return choices
        drafts = [job.sequence.drafts for _, job in due]
        ends = [output.spans[index][1] for index, _ in due]
        rows = [row for end, draft in zip(ends, drafts, strict=True) for row in range(end - 1 - len(draft), end)]
        logits, best = output.logits, output.best
        if rows != list(range(len(logits))):
            logits, best = logits[rows], None if best is None else best[rows]
        chosen = choose(logits, [job.sampler for _, job in due], drafts, masks, best)
        for (index, job), each in zip(due, chosen, strict=True):
            job.note_drafts(each)
            choices[index] = each
        return choices

    def take_ids(self, step: Step, token_ids: SequenceOf[int]) -> list[list[Choice]]:
        """The same where the device chose one token for each sequence, -1 where its logits are no numbers.

        Sequences that left since the step was made get none. Raises: ValueError for -1; nothing is noted then.
        """
        due = [
            (index, job)
            for index, sequence in enumerate(step.sequences)
            if sequence.status == "running" and (job := self.of(sequence)) is not None
        ]
        if any(token_ids[index] < 0 for index, _ in due):
            raise ValueError("a row of the logits has no finite maximum (NaN or infinity)")
        choices: list[list[Choice]] = [[] for _ in step.sequences]
        for index, job in due:
            choices[index] = [Choice(token_ids[index])]
            job.sampler.note(token_ids[index])
            job.note_drafts(choices[index])
        return choices

    def deliver(self, step: Step, choices: SequenceOf[SequenceOf[Choice]]) -> int:
        """Turn chosen tokens into deltas; complete answers leave. Returns how many tokens were said."""
        letters: list[tuple[Mailbox, Item]] = []
        over: list[Job] = []
        jobs = [self.of(sequence) for sequence in step.sequences]
        for job, chosen in zip(jobs, choices, strict=True):
            for number, choice in enumerate(chosen, start=1):
                if job is None or job.is_done:
                    break
                if job.sampler.matcher is not None and job.sampler.matcher.failure is not None:
                    self.end(job, became_too_complex(job.sampler.matcher.failure))
                    break
                try:
                    delta = job.delta(choice, is_latest=number == len(chosen))
                except Exception as error:
                    _log.error("request %s failed", job.id, exc_info=error)
                    self.fail(job.sequence, error)
                    break
                letters.append((job.mailbox, delta))
                if delta.finish_reason is not None:  # what was chosen after an end is not said
                    over.append(job)
                    break
        unreachable = post(letters)
        with self._condition:
            self.forget([*over, *(job for job in jobs if job is not None and job.mailbox in unreachable)])
        return len(letters)

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """An answer's step failed by itself, so it ends."""
        if (job := self.of(sequence)) is not None:
            self.end(job, ComponentUnavailable("generator", f"its step failed: {type(error).__name__}"))
