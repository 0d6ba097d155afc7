"""The generation engine: requests join and leave a running batch whose steps mix decodes and prompt chunks.

submit (any thread) -> inbox -> the engine's thread: scheduler -> runner -> sampler -> answer -> the caller's loop.
A request with a grammar enters the inbox when that is compiled; its mask is applied before a token is sampled. An
adapter is part of a sequence's prefix key and of the forward: what its name stood for when the request came. A draft is
more than one new token of a decoding sequence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from engine.config import GeneratorSettings, usable_cores
from engine.errors import (
    ComponentUnavailable,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    SwitchyardError,
)
from engine.generation import model_files
from engine.generation.adapters.files import AdapterInfo, AdapterWeights, read_adapter
from engine.generation.adapters.library import AdapterLibrary
from engine.generation.adapters.slots import SlotTable
from engine.generation.adapters.store import AdapterStore
from engine.generation.answer import Answer
from engine.generation.attention import build_attention
from engine.generation.budget import StepBudget
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import DecoderSpec, read_spec
from engine.generation.drafts import Drafting, DraftRate, PromptLookup, share_drafts
from engine.generation.grammar.compiler import (
    MAX_COMPILE_S,
    Compiled,
    GrammarCompiler,
    became_too_complex,
    compile_error,
    too_slow,
)
from engine.generation.grammar.matcher import MaskFiller
from engine.generation.prompt import Prompt, PromptBuilder
from engine.generation.protocol import EngineStats
from engine.generation.runner import Runner, StepLogits
from engine.generation.sampler import Choice, Sampler, choose, score
from engine.generation.scheduler import Scheduler, Step
from engine.generation.scoring.request import Preparation
from engine.generation.scoring.scorer import ScoreJob, Scorer, Scores
from engine.generation.sequence import BLOCK_TOKENS, PrefixKey, Sequence, num_blocks_for
from engine.generation.stream import DeltaStream, Item, Mailbox, post
from engine.values import (
    GenerationRequest,
    Grammar,
    Message,
    PromptReport,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
    TokenDelta,
)

# Step sizes timed at start-up; prompt chunks above the decodes'.
_DECODE_SIZES = (1, 2, 4, 8, 16, 32, 64)
_CHUNK_SIZES = (128, 256, 512)
_NUM_TIMINGS = 3
_NUM_STEP_TIMES = 256
# Adapters that nobody uses stay in memory up to so many times the slots.
_KEPT_FOR_A_SLOT = 4

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    """A request in flight. `is_done` is set by whoever ends it: the engine's thread, a cancel or a deadline."""

    sequence: Sequence
    answer: Answer
    sampler: Sampler
    mailbox: Mailbox
    drafting: Drafting | None = None
    is_done: bool = False
    has_started: bool = False
    prompt_scores: dict[int, Choice] = field(default_factory=dict)  # by position in the prompt

    @property
    def id(self) -> str:
        return self.sequence.id


class Engine:
    """A GenerationEngine. Every public method may be called from any thread."""

    runner_class: ClassVar[Callable[..., Runner]] = Runner
    stalled_after_s: ClassVar[float] = 120.0

    def __init__(
        self, model_path: Path, settings: GeneratorSettings, *, device: str = "cpu", model_digest: str = ""
    ) -> None:
        """Load the model, start the thread and warm up. `model_digest` is the content hash of the model's files.

        Raises: ModelSourceError when the folder does not hold a supported model, ConfigError when a setting does not
            fit the machine, ComponentUnavailable when warming up fails.
        """
        self._settings = settings
        self._model_digest = model_digest
        self._tokenizer = model_files.load_tokenizer(model_path)
        self._eos_ids = model_files.eos_token_ids(model_path, self._tokenizer)
        spec = read_spec(model_path)
        dtype = model_files.resolve_dtype(settings.dtype, device)
        self.max_model_len = min(settings.max_model_len, spec.max_positions)
        self._num_blocks = model_files.num_kv_blocks(
            spec, dtype, device, kv_tokens=settings.kv_tokens, at_least=self.max_model_len
        )
        self.max_model_len = min(self.max_model_len, self._num_blocks * BLOCK_TOKENS)
        self.vocab_size = spec.vocab_size
        self._spec, self._dtype = spec, dtype
        self._store = AdapterStore(spec, num_slots=settings.adapter_slots, dtype=dtype, device=torch.device(device))
        self._library = AdapterLibrary(
            self._read_adapter,
            self._store.pack,
            num_kept=_KEPT_FOR_A_SLOT * settings.adapter_slots,
            on_change=self._wake,
        )
        self._prompts = PromptBuilder(
            self._tokenizer, max_model_len=self.max_model_len, system_prompt=settings.system_prompt
        )
        self._grammars = GrammarCompiler(self._tokenizer, self._eos_ids, self.vocab_size)
        # The engine's thread only:
        self._masks = MaskFiller(self.vocab_size, self._grammars.mask_size)
        self._runner: Runner
        self._budget: StepBudget
        self._scheduler: Scheduler
        self._slots: SlotTable
        self._condition = threading.Condition()  # guards what follows and every job's is_done
        self._jobs: dict[str, _Job] = {}
        self._inbox: deque[_Job] = deque()
        self._ended: list[_Job] = []  # sequences to take out of the scheduler
        self._failure: str | None = None
        self._output_tokens = 0
        self._step_s: deque[float] = deque(maxlen=_NUM_STEP_TIMES)
        self._progress_s = monotonic()
        self._stats = EngineStats(0, 0, 0, self._num_blocks * BLOCK_TOKENS, 0)
        self._scorer = Scorer(self._condition, self._release_adapter)
        self._preparation = Preparation(
            self._scored_prompt,
            self._prompts.text_tokens,
            end_token=self._tokenizer.eos_token_id if self._tokenizer.eos_token_id is not None else min(self._eos_ids),
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
        )
        self._is_ready = threading.Event()
        self._startup_error: SwitchyardError | None = None
        self._thread = threading.Thread(
            target=self._run, args=(model_path, spec, dtype, device), name="generation", daemon=True
        )
        self._thread.start()
        self._is_ready.wait()
        if self._startup_error is not None:
            raise self._startup_error
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)

    def submit(self, request: GenerationRequest) -> DeltaStream:
        """See GenerationEngine. The prompt is built here, in the caller's thread."""
        self._check_capacity(request.id)
        prompt = self._prompt(request)
        digest = "" if request.adapter is None else self._library.acquire(request.adapter).digest
        try:
            return self._submit(request, prompt, digest)
        except BaseException:
            if digest:
                self._library.release(digest)
            raise

    def _submit(self, request: GenerationRequest, prompt: Prompt, digest: str) -> DeltaStream:
        params = request.sampling
        compiled = self._compile(request)
        now_s = monotonic()
        sequence = Sequence(
            id=request.id,
            tokens=list(prompt.token_ids),
            num_prompt_tokens=len(prompt.token_ids),
            max_total_tokens=len(prompt.token_ids) + params.max_tokens,
            key=PrefixKey(self._model_digest, digest, request.cache_salt),
            deadline_s=None if request.deadline_s is None else now_s + request.deadline_s,
            needs_prompt_logits=params.prompt_logprobs is not None,
        )
        if digest:
            prompt = replace(prompt, report=replace(prompt.report, adapter=digest))
        answer = Answer(prompt, params, self._tokenizer, self._eos_ids)
        drafting = None
        if request.drafts and self._settings.max_draft_tokens and params.max_tokens > 1:
            passages = self._prompts.passage_tokens(prompt.report.passages)
            drafting = Drafting(PromptLookup(passages, prompt.token_ids), DraftRate())
        job = _Job(sequence, answer, Sampler(params, prompt.token_ids), Mailbox(), drafting)
        with self._condition:
            self._check_capacity(request.id)
            if not self._jobs:
                self._progress_s = now_s
            self._jobs[job.id] = job
            if compiled is None:
                self._inbox.append(job)
                self._condition.notify()
        if compiled is not None and request.grammar is not None:
            self._begin_when_compiled(job, request.grammar, compiled)
        timer = None
        if request.deadline_s is not None:
            # The scheduler frees the place between steps; the reader hears of it on time even during a long one.
            timer = job.mailbox.loop.call_later(request.deadline_s, self._expire, job, request.deadline_s)
        return DeltaStream(job.mailbox, lambda: self._end(job, None), timer)

    async def score(self, request: ScoreRequest) -> Scores:
        """See GenerationEngine. Tokens are made in a thread of their own: there may be thousands of texts."""
        self._check_capacity(request.id, len(request.items))
        prompts = await asyncio.to_thread(self._preparation.prepare, request)
        digest = "" if request.adapter is None else self._library.acquire(request.adapter).digest
        loop = asyncio.get_running_loop()
        key = PrefixKey(self._model_digest, digest, request.cache_salt)
        job = ScoreJob(request.id, prompts, key, loop, loop.create_future())
        try:
            with self._condition:
                self._check_capacity(request.id, len(prompts))
                if not self._jobs:
                    self._progress_s = monotonic()
                self._scorer.submit(job)
        except BaseException:
            self._release_adapter(job)
            raise
        try:
            async with asyncio.timeout(request.deadline_s):
                return await job.future
        except TimeoutError:
            assert request.deadline_s is not None
            raise DeadlineExceeded(request.deadline_s * 1000) from None
        finally:
            self._scorer.end(job, None)

    def cancel(self, request_id: str) -> None:
        """See GenerationEngine."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._end(job, None)
        for scoring in self._scorer.jobs():
            if scoring.id == request_id:
                self._scorer.end(scoring, None)

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        """See GenerationEngine. The caller's thread waits, the engine's does not."""
        return self._library.load(name, path)

    def unload_adapter(self, name: str) -> AdapterInfo:
        """See GenerationEngine."""
        return self._library.unload(name)

    def adapters(self) -> list[AdapterInfo]:
        """See GenerationEngine."""
        return self._library.infos()

    def stats(self) -> EngineStats:
        """See GenerationEngine."""
        with self._condition:
            return replace(
                self._stats,
                running=min(self._stats.running, len(self._jobs)),
                waiting=max(len(self._jobs) - self._stats.running, 0),
                output_tokens=self._output_tokens,
                step_ms=1000 * median(self._step_s) if self._step_s else 0.0,
            )

    def check_health(self) -> None:
        """See GenerationEngine."""
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)
        stalled_s = monotonic() - self._progress_s
        if (self._jobs or self._scorer.num_prompts) and stalled_s > self.stalled_after_s:
            raise ComponentUnavailable("generator", f"no step finished for {stalled_s:.0f} s")

    def close(self) -> None:
        """See GenerationEngine."""
        self._stop("it is shutting down")
        self._library.close()
        self._grammars.close()
        self._thread.join()

    def _prompt(self, request: GenerationRequest) -> Prompt:
        if not request.prompt_token_ids:
            return self._prompts.build(request)
        ids = list(request.prompt_token_ids)
        if not all(0 <= token < self.vocab_size for token in ids):
            raise InvalidRequest(f"prompt_token_ids must be from 0 to {self.vocab_size - 1}.", param="prompt")
        if len(ids) + request.sampling.max_tokens > self.max_model_len:
            raise PromptTooLong(len(ids), request.sampling.max_tokens, self.max_model_len)
        return Prompt(ids, PromptReport(len(ids), ()))

    def _scored_prompt(self, item: ScoreItem) -> list[int]:
        asked = GenerationRequest("", item.messages, sampling=SamplingParams(max_tokens=1))
        return self._prompt(replace(asked, prompt_token_ids=item.prompt_token_ids)).token_ids

    def _release_adapter(self, job: ScoreJob) -> None:
        if job.key.adapter:
            self._library.release(job.key.adapter)

    def _read_adapter(self, path: Path, name: str) -> tuple[AdapterInfo, AdapterWeights]:
        return read_adapter(
            path,
            name,
            self._spec,
            model_digest=self._model_digest,
            max_rank=self._settings.max_adapter_rank,
            dtype=self._dtype,
        )

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def _check_capacity(self, request_id: str, num_prompts: int = 1) -> None:
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)
        if request_id in self._jobs or request_id in self._scorer:
            raise InvalidRequest(f"a request with id {request_id!r} is in progress; ids must differ.", param="id")
        # Places in the batch count too: requests about to enter an empty batch do not wait for one.
        most = self._settings.max_num_seqs + self._settings.max_queued
        if num_prompts > most:
            raise InvalidRequest(
                f"the request has {num_prompts} prompts; at most {most} are taken at once. Send several requests, or "
                "raise generator.max_queued.",
                param="input",
            )
        if len(self._jobs) + self._scorer.num_prompts + num_prompts > most:
            raise Overloaded("the generator's queue", self._settings.max_queued, "generator.max_queued")

    def _compile(self, request: GenerationRequest) -> Future[Compiled] | None:
        if request.grammar is None:
            return None
        if request.sampling.ignore_eos:
            raise InvalidRequest(
                "ignore_eos contradicts a grammar, which says where an answer ends.", param="ignore_eos"
            )
        return self._grammars.compile(request.grammar)

    def _begin_when_compiled(self, job: _Job, grammar: Grammar, compiled: Future[Compiled]) -> None:
        def begin(done: Future[Compiled]) -> None:
            error = CancelledError() if done.cancelled() else done.exception()
            if error is not None:
                self._end(job, compile_error(error))
                return
            job.sampler.matcher = done.result().start()
            with self._condition:
                self._inbox.append(job)
                self._condition.notify()

        def give_up() -> None:
            if not compiled.done():
                self._end(job, too_slow(grammar))

        if not compiled.done():
            job.mailbox.loop.call_later(MAX_COMPILE_S, give_up)
        compiled.add_done_callback(begin)

    def _expire(self, job: _Job, deadline_s: float) -> None:
        self._end(job, DeadlineExceeded(deadline_s * 1000))

    def _end(self, job: _Job, item: Item) -> None:
        """End a job early, telling its reader `item`; one that is complete is left alone. Any thread."""
        with self._condition:
            if job.is_done:
                return
            self._forget(job)
            self._condition.notify()
        post([(job.mailbox, item)])

    def _forget(self, job: _Job) -> None:
        """Take a job out of the books, once; its sequence leaves before the next step. Under the lock."""
        if job.is_done:
            return
        job.is_done = True
        del self._jobs[job.id]
        self._ended.append(job)
        if job.sequence.key.adapter:
            self._library.release(job.sequence.key.adapter)

    def _stop(self, why: str) -> None:
        """Refuse new requests and fail those in flight. The first reason stays."""
        with self._condition:
            self._failure = self._failure or why
            jobs = list(self._jobs.values())
            for job in jobs:
                self._forget(job)
            self._condition.notify()
        post([(job.mailbox, ComponentUnavailable("generator", why)) for job in jobs])
        for scoring in self._scorer.jobs():
            self._scorer.end(scoring, ComponentUnavailable("generator", why))

    # What follows runs in the engine's thread.

    def _run(self, model_path: Path, spec: DecoderSpec, dtype: torch.dtype, device: str) -> None:
        try:
            self._take_cores()
            self._load(model_path, spec, dtype, device)
            self._warm_up()
            self._is_ready.set()
            while self._wait_for_work():
                self._step()
        except SwitchyardError as error:
            self._startup_error = error
            self._stop(str(error))
        except BaseException as error:
            _log.exception("the generation thread died")
            self._stop(f"its thread died of {type(error).__name__}: {error}")
        finally:
            self._is_ready.set()

    def _take_cores(self) -> None:
        """Threads and cores of torch's and the kernels' parallel regions belong to the thread that sets them."""
        cores = self._settings.cores
        if cores:
            try:
                os.sched_setaffinity(0, cores)
            except (OSError, AttributeError) as error:
                raise ConfigError(
                    f"generator.cores={list(cores)} cannot be used ({error}); this process may use "
                    f"{usable_cores()} cores. Leave it empty to use all."
                ) from None
        torch.set_num_threads(self._settings.threads or len(cores) or usable_cores())

    def _load(self, model_path: Path, spec: DecoderSpec, dtype: torch.dtype, device: str) -> None:
        # In this thread, so that no other one of this process ever runs a parallel region: with a second team of
        # threads, OpenMP sees more threads than cores and puts them to sleep between regions, 8 ms a step on 2 cores.
        decoder = Decoder(model_path, spec, dtype=dtype, device=device, weights=self._settings.weights)
        decoder.choose_formats()
        attention = build_attention(
            spec, num_blocks=self._num_blocks, max_model_len=self.max_model_len, dtype=dtype, device=decoder.device
        )
        self._runner = self.runner_class(decoder, attention, self._store, self._library.weights)

    def _warm_up(self) -> None:
        """Time steps of several sizes, then build the scheduler and compute the house's system prompt once."""
        self._budget = StepBudget(
            self._measure_steps(),
            max_batched_tokens=self._settings.max_batched_tokens,
            max_stretch=self._settings.max_stretch,
        )
        self._slots = SlotTable(self._settings.adapter_slots)
        self._scheduler = Scheduler(
            num_blocks=self._num_blocks,
            max_num_seqs=self._settings.max_num_seqs,
            max_waiting=self._settings.max_num_seqs + self._settings.max_queued,
            budget=self._budget,
            max_pinned_blocks=min(self._num_blocks // 8, self._num_blocks - num_blocks_for(self.max_model_len)),
            slots=self._slots,
            is_loaded=self._library.is_loaded,
        )
        self._pin_system_prompt()

    def _measure_steps(self) -> Mapping[int, float]:
        most = min(max(self._settings.max_batched_tokens, 1), self._num_blocks * BLOCK_TOKENS, self.max_model_len)
        sizes = [(size, True) for size in _DECODE_SIZES if size <= max(self._settings.max_num_seqs, 1)]
        sizes += [(size, False) for size in _CHUNK_SIZES if sizes[-1][0] < size <= most]
        step_s: dict[int, float] = {}
        for size, is_decode in sizes:
            self._runner.measure(size, is_decode=is_decode)  # the first of a size also pays for set-up
            times = [self._runner.measure(size, is_decode=is_decode) for _ in range(_NUM_TIMINGS)]
            step_s[size] = median(times)
        return step_s

    def _pin_system_prompt(self) -> None:
        """Keep the keys and values of what every conversation without a system prompt of its own begins with."""
        beginnings = [
            self._prompts.build(
                GenerationRequest("", (Message("user", text),), sampling=SamplingParams(max_tokens=1))
            ).token_ids
            for text in ("a", "b")
        ]
        shared = next((i for i, pair in enumerate(zip(*beginnings, strict=False)) if pair[0] != pair[1]), 0)
        if shared < BLOCK_TOKENS:
            return
        tokens = beginnings[0][: shared + 1]
        sequence = Sequence(
            id="",
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            max_total_tokens=len(tokens) + 1,
            key=PrefixKey(self._model_digest, "", ""),
            deadline_s=None,
            num_pinned_tokens=shared,
        )
        self._scheduler.add(sequence)
        while not sequence.is_decoding and (step := self._scheduler.next_step()) is not None:
            self._runner.run(step)
            self._scheduler.finish_step(step, [[0] if self._is_complete(step, i) else [] for i in range(1)])
        self._scheduler.finish(sequence)

    def _wait_for_work(self) -> bool:
        """Block while there is nothing to do. False: the engine is closing."""
        with self._condition:
            self._condition.wait_for(self._has_work)
            return self._failure is None

    def _has_work(self) -> bool:
        is_told = self._failure is not None or self._inbox or self._ended or self._library.has_changes
        is_told = is_told or self._scorer.has_news
        return bool(is_told) or self._scheduler.has_work

    def _step(self) -> None:
        self._take_in()
        self._draft()
        if copies := self._scorer.fork(self._scheduler):
            self._runner.copy_blocks(copies)
        step = self._scheduler.next_step()
        if step is not None:
            num_decodes = sum(1 + len(sequence.drafts) for sequence in step.sequences if sequence.is_decoding)
            started = perf_counter()
            self._execute(step)
            step_s = perf_counter() - started
            self._budget.observe(num_decodes, step.num_total_tokens - num_decodes, step_s)
            self._step_s.append(step_s)
        self._publish_stats()

    def _take_in(self) -> None:
        """Let new sequences in, and out those whose readers left or whose time is up."""
        with self._condition:
            arrived, self._inbox = self._inbox, deque()
            ended, self._ended = self._ended, []
            # Together: an adapter that is gone was held by nobody but those that end here.
            unreadable, retired = self._library.take_changes()
            scoring = self._scorer.take()
        for job in arrived:
            if not job.is_done:
                self._scheduler.add(job.sequence)
        for sequence in self._scheduler.expired(monotonic()):
            late = self._jobs.get(sequence.id)
            if late is not None and late.sequence is sequence and sequence.deadline_s is not None:
                self._end(late, DeadlineExceeded(1000 * (sequence.deadline_s - late.answer.submitted_s)))
            self._scheduler.finish(sequence)
        for each in ended:
            self._scheduler.finish(each.sequence)
        self._scorer.take_in(*scoring, self._scheduler)
        for digest in retired:
            self._scheduler.forget_adapter(digest)
        if unreadable:
            for job in list(self._jobs.values()):
                if (error := unreadable.get(job.sequence.key.adapter)) is not None:
                    self._end(job, error)
            for each_scoring in self._scorer.jobs():
                if (error := unreadable.get(each_scoring.key.adapter)) is not None:
                    self._scorer.end(each_scoring, error)

    def _draft(self) -> None:
        """Guess what answers will say next, as far as the step has room for guesses. Prompts need all of it."""
        sequences = self._scheduler.decoding()
        if self._settings.max_draft_tokens == 0 or not sequences:
            return
        jobs = [self._jobs.get(sequence.id) for sequence in sequences]
        guesses = [[] if job is None else self._guess(job) for job in jobs]
        if not any(guesses):
            return
        rates = [job.drafting.rate if job is not None and job.drafting else DraftRate() for job in jobs]
        offers = [(rate, len(guess)) for rate, guess in zip(rates, guesses, strict=True)]
        most = min(sum(map(len, guesses)), self._settings.max_batched_tokens - len(sequences))
        step_s = self._budget.draft_step_s(len(sequences), max(most, 0))
        for sequence, guess, granted in zip(sequences, guesses, share_drafts(offers, step_s), strict=True):
            sequence.drafts = guess[:granted]

    def _guess(self, job: _Job) -> list[int]:
        """Tokens that may come next, as far as the job's grammar lets them."""
        matcher = job.sampler.matcher
        # The tokens behind a draft would have to be drawn under a mask of their own.
        if job.drafting is None or (matcher is not None and job.sampler.params.temperature > 0):
            return []
        guess = job.drafting.lookup.draft(self._settings.max_draft_tokens)
        return guess if matcher is None else guess[: matcher.num_allowed(guess)]

    def _execute(self, step: Step) -> None:
        """Run a step and deliver its tokens. Where it fails, each sequence runs alone and only those at fault end."""
        for sequence in step.sequences:
            job = self._jobs.get(sequence.id)
            if job is not None and not job.has_started:
                job.has_started = True
                job.answer.start()
        try:
            output = self._runner.run(step)
            jobs = [self._jobs.get(sequence.id) for sequence in step.sequences]
            self._scorer.read(step, output)  # first: it may be repeated, choosing may not
            choices = self._choose(step, jobs, output)
        except Exception as error:
            if len(step.sequences) == 1:
                self._fail(step.sequences[0], error)
                return
            _log.warning("a step of %d requests failed; they run one by one", len(step.sequences), exc_info=error)
            for sequence, num_tokens in zip(step.sequences, step.num_tokens, strict=True):
                self._execute(Step((sequence,), (num_tokens,)))
            return
        self._note_drafts(step, jobs, choices)
        self._scheduler.finish_step(step, [[choice.token_id for choice in each] for each in choices])
        self._scorer.advance(step, self._scheduler)
        self._deliver(jobs, choices)

    @staticmethod
    def _note_drafts(step: Step, jobs: list[_Job | None], choices: list[list[Choice]]) -> None:
        for sequence, job, chosen in zip(step.sequences, jobs, choices, strict=True):
            if job is not None and job.drafting is not None and chosen:
                job.drafting.rate.observe(len(sequence.drafts), len(chosen) - 1)
                job.drafting.lookup.extend(choice.token_id for choice in chosen)

    def _choose(self, step: Step, jobs: list[_Job | None], output: StepLogits) -> list[list[Choice]]:
        """The next tokens of each sequence that is due one. A job that ended meanwhile gets any."""
        for index, job in enumerate(jobs):
            if job is not None and step.sequences[index].needs_prompt_logits:
                self._score_prompt(job, step, index, output)
        answers = [index for index in range(len(jobs)) if not self._scorer.owns(step.sequences[index])]
        due = [index for index in answers if self._is_complete(step, index)]
        drafts = [step.sequences[index].drafts for index in due]
        ends = [output.spans[index][1] for index in due]
        rows = [row for end, draft in zip(ends, drafts, strict=True) for row in range(end - 1 - len(draft), end)]
        choices: list[list[Choice]] = [[] for _ in jobs]
        if not due:
            return choices
        logits = output.logits if rows == list(range(len(output.logits))) else output.logits[rows]
        samplers = [job.sampler if job is not None else Sampler.greedy() for job in (jobs[index] for index in due)]
        for index, chosen in zip(due, choose(logits, samplers, drafts, self._masks), strict=True):
            choices[index] = chosen
        return choices

    def _score_prompt(self, job: _Job, step: Step, index: int, output: StepLogits) -> None:
        """Log-probabilities of the prompt's own tokens, as far as this step brought their logits."""
        sequence, (first_row, last_row) = job.sequence, output.spans[index]
        start = sequence.num_computed + 1
        stop = min(start + last_row - first_row, sequence.num_prompt_tokens)
        if stop <= start:
            return
        rows: Tensor = output.logits[first_row : first_row + stop - start]
        scores = score(rows, sequence.tokens[start:stop], job.sampler.params.prompt_logprobs or 0)
        job.prompt_scores.update(zip(range(start, stop), scores, strict=True))

    def _deliver(self, jobs: list[_Job | None], choices: list[list[Choice]]) -> None:
        """Turn chosen tokens into deltas; complete answers leave the batch."""
        letters: list[tuple[Mailbox, Item]] = []
        done: list[_Job] = []
        for job, chosen in zip(jobs, choices, strict=True):
            for number, choice in enumerate(chosen, start=1):
                if job is None or job.is_done:
                    break
                if job.sampler.matcher is not None and job.sampler.matcher.failure is not None:
                    self._end(job, became_too_complex(job.sampler.matcher.failure))
                    break
                try:
                    delta = self._delta(job, choice, is_latest=number == len(chosen))
                except Exception as error:
                    self._fail(job.sequence, error)
                    break
                self._output_tokens += 1
                letters.append((job.mailbox, delta))
                if delta.finish_reason is not None:  # what was chosen after an end is not said
                    done.append(job)
                    break
        self._progress_s = monotonic()
        unreachable = post(letters)
        with self._condition:
            for job in [*done, *(job for job in jobs if job is not None and job.mailbox in unreachable)]:
                self._forget(job)

    def _delta(self, job: _Job, choice: Choice, *, is_latest: bool) -> TokenDelta:
        if job.answer.num_tokens == 0:
            scores = [job.prompt_scores.get(position) for position in range(job.sequence.num_prompt_tokens)]
            job.answer.report_prompt(job.sequence.num_cached_tokens, scores if job.prompt_scores else ())
        matcher = job.sampler.matcher
        # The matcher stands behind all tokens of the step.
        return job.answer.accept(choice, is_complete=is_latest and matcher is not None and matcher.is_complete)

    @staticmethod
    def _is_complete(step: Step, index: int) -> bool:
        """Whether the step computes all tokens of its sequence `index`, so that the next one can be chosen."""
        sequence = step.sequences[index]
        return sequence.num_computed + step.num_tokens[index] == len(sequence.tokens) + len(sequence.drafts)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        _log.error("request %s failed", sequence.id, exc_info=error)
        self._progress_s = monotonic()
        self._scheduler.finish(sequence)
        job = self._jobs.get(sequence.id)
        if job is not None:
            self._end(job, ComponentUnavailable("generator", f"its step failed: {type(error).__name__}"))
        self._scorer.fail(sequence, error)

    def _publish_stats(self) -> None:
        scheduler = self._scheduler
        snapshot = EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_tokens=scheduler.num_used_blocks * BLOCK_TOKENS,
            max_kv_tokens=self._num_blocks * BLOCK_TOKENS,
            output_tokens=0,
            prompt_tokens=scheduler.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            num_preemptions=scheduler.num_preemptions,
            adapter_swaps=self._slots.num_swaps,
        )
        with self._condition:
            self._stats = snapshot
