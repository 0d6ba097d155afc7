"""Continuous batching in its simplest correct form, over transformers' model classes.

One thread owns the model. A step prefills what was admitted, prompts of like length together, merges them into the
running batch, and decodes one token for every row. Finished and cancelled rows leave before the next step.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import ClassVar

import torch

from engine.config import GeneratorSettings, usable_cores
from engine.errors import ComponentUnavailable, DeadlineExceeded, InvalidRequest, Overloaded, UnknownModel
from engine.generation import weights
from engine.generation.answer import Answer
from engine.generation.prompt import PromptBuilder
from engine.generation.protocol import EngineStats
from engine.generation.runner import BatchRunner
from engine.generation.sampler import Sampler, choose_tokens
from engine.generation.stream import DeltaStream, Item, Mailbox, post
from engine.values import GenerationRequest

MAX_PREFILL_TOKENS = 2048  # prompt tokens of one step, unless one prompt is longer: decodes wait meanwhile
MAX_PADDED_SHARE = 1.25  # of the tokens of prompts that are prefilled together

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    """A request in flight. `is_done` is set by whoever ends it: the engine's thread, a cancel or a deadline."""

    id: str
    answer: Answer
    sampler: Sampler
    mailbox: Mailbox
    is_done: bool = False


class TransformersEngine:
    """A GenerationEngine. Every public method may be called from any thread."""

    runner_class: ClassVar[type[BatchRunner]] = BatchRunner
    stalled_after_s: ClassVar[float] = 120.0

    def __init__(self, model_path: Path, settings: GeneratorSettings, *, device: str = "cpu") -> None:
        """Load the model, start the thread and warm up.

        Raises: ModelSourceError when the folder does not hold a supported model, ComponentUnavailable when warming
            up fails.
        """
        self._tokenizer = weights.load_tokenizer(model_path)
        model = weights.load_model(model_path, settings.dtype, device)
        self.max_model_len = min(settings.max_model_len, model.config.max_position_embeddings)
        self._prompts = PromptBuilder(
            self._tokenizer, max_model_len=self.max_model_len, system_prompt=settings.system_prompt
        )
        self._eos_ids = weights.eos_token_ids(model, self._tokenizer)
        self._max_kv_tokens = max(weights.kv_token_budget(model, device), self.max_model_len)
        self._settings = settings
        self._runner = self.runner_class(model)
        self._condition = threading.Condition()  # guards _jobs, _waiting, _failure and every job's is_done
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._failure: str | None = None
        self._running: list[_Job] = []  # the engine's thread only; the order is that of the runner's rows
        self._output_tokens = 0
        self._progress_s = monotonic()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)

    def submit(self, request: GenerationRequest) -> DeltaStream:
        """See GenerationEngine. The prompt is built here, in the caller's thread."""
        if request.adapter is not None:
            raise UnknownModel(request.adapter, ["auto"])
        self._check_capacity(request.id)
        prompt = self._prompts.build(request)
        answer = Answer(prompt, request.sampling, self._tokenizer, self._eos_ids)
        job = _Job(request.id, answer, Sampler(request.sampling), Mailbox())
        with self._condition:
            self._check_capacity(request.id)
            if not self._jobs:
                self._progress_s = monotonic()
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._condition.notify()
        timer = None
        if request.deadline_s is not None:
            timer = job.mailbox.loop.call_later(request.deadline_s, self._expire, job, request.deadline_s)
        return DeltaStream(job.mailbox, lambda: self._end(job, None), timer)

    def cancel(self, request_id: str) -> None:
        """See GenerationEngine."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._end(job, None)

    def stats(self) -> EngineStats:
        """See GenerationEngine."""
        with self._condition:
            running = len(self._jobs) - len(self._waiting)
            return EngineStats(
                running, len(self._waiting), self._runner.kv_tokens, self._max_kv_tokens, self._output_tokens
            )

    def check_health(self) -> None:
        """See GenerationEngine."""
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)
        stalled_s = monotonic() - self._progress_s
        if self._jobs and stalled_s > self.stalled_after_s:
            raise ComponentUnavailable("generator", f"no step finished for {stalled_s:.0f} s")

    def close(self) -> None:
        """See GenerationEngine."""
        self._stop("it is shutting down")
        self._thread.join()
        self._runner.clear()

    def _check_capacity(self, request_id: str) -> None:
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)
        if request_id in self._jobs:
            raise InvalidRequest(f"a request with id {request_id!r} is in progress; ids must differ.", param="id")
        # Places in the batch count too: requests about to enter an empty batch do not wait for one.
        if len(self._jobs) >= self._settings.max_num_seqs + self._settings.max_queued:
            raise Overloaded("the generator's queue", self._settings.max_queued, "generator.max_queued")

    def _expire(self, job: _Job, deadline_s: float) -> None:
        self._end(job, DeadlineExceeded(deadline_s * 1000))

    def _end(self, job: _Job, item: Item) -> None:
        """End a job early, telling its reader `item`; one that is complete is left alone. Any thread."""
        with self._condition:
            if job.is_done:
                return
            self._forget(job)
        post([(job.mailbox, item)])

    def _forget(self, job: _Job) -> None:
        """Take a job out of the books, once; its row leaves at the next step. Under the lock."""
        if job.is_done:
            return
        job.is_done = True
        del self._jobs[job.id]
        if job in self._waiting:
            self._waiting.remove(job)

    def _stop(self, why: str) -> None:
        """Refuse new requests and fail those in flight. The first reason stays."""
        with self._condition:
            self._failure = self._failure or why
            jobs = list(self._jobs.values())
            for job in jobs:
                self._forget(job)
            self._condition.notify()
        post([(job.mailbox, ComponentUnavailable("generator", why)) for job in jobs])

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            # Thread counts of torch belong to the thread that sets them.
            torch.set_num_threads(self._settings.threads or usable_cores())
            self._runner.warm_up()
            self._is_ready.set()
            while self._wait_for_work():
                self._step()
        except BaseException as error:
            _log.exception("the generation thread died")
            self._stop(f"its thread died of {type(error).__name__}: {error}")
        finally:
            self._is_ready.set()

    def _wait_for_work(self) -> bool:
        """Block while there is nothing to do. False: the engine is closing."""
        with self._condition:
            self._condition.wait_for(lambda: self._failure is not None or self._waiting or self._running)
            return self._failure is None

    def _step(self) -> None:
        self._remove_done_rows()
        for group in _like_lengths(self._admit()):
            self._prefill(group)
        self._remove_done_rows()
        if self._running:
            self._decode()

    def _admit(self) -> list[_Job]:
        """Take waiting jobs, first come first served, while batch, memory and this step's prefill have room."""
        admitted: list[_Job] = []
        num_prompt_tokens = 0
        with self._condition:
            while self._waiting:
                answer = self._waiting[0].answer
                batch = [*(job.answer for job in self._running), *(job.answer for job in admitted), answer]
                num_prompt_tokens += len(answer.prompt.token_ids)
                # Rows are padded to the longest, so this is what the batch may come to occupy.
                kv_tokens = len(batch) * max(each.max_total_tokens for each in batch)
                if len(batch) > self._settings.max_num_seqs or (len(batch) > 1 and kv_tokens > self._max_kv_tokens):
                    break
                if admitted and num_prompt_tokens > MAX_PREFILL_TOKENS:
                    break
                admitted.append(self._waiting.popleft())
        return admitted

    def _prefill(self, group: list[_Job]) -> None:
        """Run some prompts and deliver their first tokens at once. A failure leaves the running batch alone."""
        for job in group:
            job.answer.start()
        try:
            logits = self._runner.prefill([job.answer.prompt.token_ids for job in group])
            self._running += group
            tokens = choose_tokens(logits, [job.sampler for job in group])
        except Exception as error:
            self._fail(group, error)
            return
        self._accept(group, tokens)

    def _decode(self) -> None:
        """Advance every row by one token. A failure ends the whole batch, whose keys and values are lost."""
        jobs = list(self._running)
        try:
            logits = self._runner.decode([job.answer.last_token_id or 0 for job in jobs])
            tokens = choose_tokens(logits, [job.sampler for job in jobs])
        except Exception as error:
            self._runner.clear()
            self._running.clear()
            self._fail(jobs, error)
            return
        self._accept(jobs, tokens)

    def _accept(self, jobs: list[_Job], tokens: Iterable[int]) -> None:
        """Append a token to each job's answer and deliver the deltas."""
        letters: list[tuple[Mailbox, Item]] = []
        for job, token in zip(jobs, tokens, strict=True):
            delta = job.answer.accept(token)
            self._output_tokens += 1
            letters.append((job.mailbox, delta))
            if delta.finish_reason is not None:
                with self._condition:
                    self._forget(job)
        self._progress_s = monotonic()
        unreachable = post(letters)
        with self._condition:
            for job in jobs:
                if job.mailbox in unreachable:
                    self._forget(job)

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        _log.error("a forward pass failed", exc_info=error)
        self._progress_s = monotonic()
        for job in jobs:
            self._end(job, ComponentUnavailable("generator", f"its step failed: {type(error).__name__}"))

    def _remove_done_rows(self) -> None:
        rows = [row for row, job in enumerate(self._running) if not job.is_done]
        if len(rows) < len(self._running):
            self._running = [self._running[row] for row in rows]
            self._runner.keep(rows)


def _like_lengths(jobs: list[_Job]) -> list[list[_Job]]:
    """Group jobs so that padding their prompts to the longest of the group adds little."""
    groups: list[list[_Job]] = []
    num_tokens = 0
    for job in sorted(jobs, key=lambda each: len(each.answer.prompt.token_ids)):
        length = len(job.answer.prompt.token_ids)
        num_tokens += length
        if groups and (len(groups[-1]) + 1) * length <= MAX_PADDED_SHARE * num_tokens:
            groups[-1].append(job)
        else:
            groups.append([job])
            num_tokens = length
    return groups
