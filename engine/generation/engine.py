"""The generation engine: requests join and leave a running batch whose steps mix decodes and prompt chunks.

submit (any thread) -> intake -> jobs -> the engine's thread: scheduler -> runner -> sampler -> answer -> the caller's
loop; on a GPU the next step may be launched before this one is read (`pipeline.py`). A request with a grammar joins
when that is compiled; its mask is applied before a token is sampled. An adapter is part of a sequence's prefix key and
of the forward: what its name stood for when the request came. A draft is one of several new tokens of a decode.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import monotonic
from typing import ClassVar

import torch

from engine.config import GeneratorSettings
from engine.errors import (
    ComponentUnavailable,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    SwitchyardError,
)
from engine.generation import model_files
from engine.generation.adapters.files import AdapterWeights, read_adapter
from engine.generation.adapters.host import AdapterInfo
from engine.generation.adapters.library import AdapterLibrary
from engine.generation.adapters.slots import SlotTable
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention import build_attention
from engine.generation.budget import StepBudget
from engine.generation.cache_size import cache_size
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.execution import Execution
from engine.generation.grammar.compiler import GrammarCompiler
from engine.generation.grammar.matcher import MaskFiller
from engine.generation.graphs.build import build_graphs
from engine.generation.intake import Intake
from engine.generation.jobs import Jobs
from engine.generation.parallel.adapters import AdapterSplitter
from engine.generation.parallel.group import LOAD_S, RankGroup, Ranks
from engine.generation.parallel.runner import ParallelRunner
from engine.generation.parallel.split import part_spec
from engine.generation.pipeline import Pipeline
from engine.generation.placement.report import ReplicaReport
from engine.generation.progress import Progress
from engine.generation.prompt import PromptBuilder
from engine.generation.protocol import EngineStats
from engine.generation.runner import Runner
from engine.generation.scheduler import Scheduler
from engine.generation.scoring.scorer import Scorer, Scores
from engine.generation.sequence import BLOCK_TOKENS, num_blocks_for
from engine.generation.stream import DeltaStream, post
from engine.generation.warm_up import measure_least_chunk, measure_steps, pin_system_prompt, take_cores
from engine.values import GenerationRequest, ScoreRequest

# Adapters that nobody uses stay in memory up to so many times the slots.
_KEPT_FOR_A_SLOT = 4

_log = logging.getLogger(__name__)


class Engine:
    """A GenerationEngine. Every public method may be called from any thread."""

    runner_class: ClassVar[Callable[..., Runner]] = Runner
    parallel_runner_class: ClassVar[Callable[..., Runner]] = ParallelRunner
    stalled_after_s: ClassVar[float] = 120.0

    def __init__(
        self,
        model_path: Path,
        settings: GeneratorSettings,
        *,
        device: str = "cpu",
        model_digest: str = "",
        ranks: RankGroup | None = None,
    ) -> None:
        """Load the model, start the thread and warm up. `model_digest` is the content hash of the model's files.

        With `tensor_parallel` above 1 this is the first of `ranks`, the others run a Follower of the same model and
        settings; they end with this engine, which closes `ranks`.
        Raises: ModelSourceError when the folder does not hold a supported model, ConfigError when a setting does not
            fit the machine, ComponentUnavailable when warming up fails, RankLost when another rank dies meanwhile.
        """
        self._settings = settings
        self._ranks: Ranks = ranks or Ranks()
        if self._ranks.size != settings.tensor_parallel:
            raise ConfigError(
                f"generator.tensor_parallel={settings.tensor_parallel} needs as many processes, here "
                f"{self._ranks.size} run one engine. A server starts them; elsewhere set it to 1."
            )
        self._model_digest = model_digest
        tokenizer = model_files.load_tokenizer(model_path)
        eos_ids = model_files.eos_token_ids(model_path, tokenizer)
        self._spec = spec = read_spec(model_path)
        self._dtype = dtype = model_files.resolve_dtype(settings.dtype, device)
        size = cache_size(spec, settings, dtype, device, self._ranks)
        self._num_blocks, self.max_model_len = size.num_blocks, size.max_model_len
        self._part = part_spec(spec, self._ranks.size)
        self.vocab_size = spec.vocab_size
        self._store = AdapterStore(
            self._part, num_slots=settings.adapter_slots, dtype=dtype, device=torch.device(device)
        )
        self._library = AdapterLibrary(
            self._read_adapter,
            AdapterSplitter(self._store, self._ranks.size).pack if self._ranks.size > 1 else self._store.pack,
            num_kept=_KEPT_FOR_A_SLOT * settings.adapter_slots,
            on_change=self._wake,
        )
        self._prompts = PromptBuilder(tokenizer, max_model_len=self.max_model_len, system_prompt=settings.system_prompt)
        self._grammars = GrammarCompiler(tokenizer, eos_ids, self.vocab_size)
        self._intake = Intake(
            self._prompts,
            tokenizer,
            eos_ids,
            self._library,
            settings,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            model_digest=model_digest,
        )
        # The engine's thread only:
        self._runner: Runner
        self._budget: StepBudget
        self._scheduler: Scheduler
        self._slots: SlotTable
        self._execution: Execution
        self._pipeline: Pipeline
        self._condition = threading.Condition()  # guards what follows
        self._jobs = Jobs(self._condition, lambda job: self._intake.release(job.sequence.key))
        self._scorer = Scorer(self._condition, lambda job: self._intake.release(job.key))
        self._progress = Progress(self._num_blocks)
        self._reports = count()
        self._failure: str | None = None
        self._is_ready = threading.Event()
        self._startup_error: SwitchyardError | None = None
        self._thread = threading.Thread(target=self._run, args=(model_path, device), name="generation", daemon=True)
        self._thread.start()
        self._is_ready.wait()
        if self._startup_error is not None:
            raise self._startup_error
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)

    def submit(self, request: GenerationRequest) -> DeltaStream:
        """See GenerationEngine. The prompt is built here, in the caller's thread."""
        self._check_capacity(request.id)
        job = self._intake.answer_job(request)
        try:
            compiled = None if job.grammar is None else self._grammars.compile(job.grammar)
            with self._condition:
                self._check_capacity(request.id)
                self._note_arrival()
                self._jobs.add(job)
        except BaseException:
            self._intake.release(job.sequence.key)
            raise
        if job.grammar is None or compiled is None:
            self._jobs.begin(job)
        else:
            self._jobs.begin_when_compiled(job, job.grammar, compiled)
        timer = None
        if request.deadline_s is not None:
            # The scheduler frees the place between steps; the reader hears of it on time even during a long one.
            late = DeadlineExceeded(request.deadline_s * 1000)
            timer = job.mailbox.loop.call_later(request.deadline_s, self._jobs.end, job, late)
        return DeltaStream(job.mailbox, lambda: self._jobs.end(job, None), timer)

    async def score(self, request: ScoreRequest) -> Scores:
        """See GenerationEngine."""
        self._check_capacity(request.id, len(request.items))
        job = await self._intake.score_job(request)
        try:
            with self._condition:
                self._check_capacity(request.id, len(job.prompts))
                self._note_arrival()
                self._scorer.submit(job)
        except BaseException:
            self._intake.release(job.key)
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
            self._jobs.end(job, None)
        for scoring in self._scorer.jobs():
            if scoring.id == request_id:
                self._scorer.end(scoring, None)

    def load_adapter(self, name: str, path: Path, digest: str | None = None) -> AdapterInfo:
        """See AdapterHost. The caller's thread waits, the engine's does not."""
        return self._library.load(name, path, digest)

    def unload_adapter(self, name: str) -> AdapterInfo:
        """See AdapterHost."""
        return self._library.unload(name)

    def adapters(self) -> list[AdapterInfo]:
        """See AdapterHost."""
        return self._library.infos()

    def stats(self) -> EngineStats:
        """See GenerationEngine."""
        with self._condition:
            return self._progress.stats(len(self._jobs))

    def report(self) -> ReplicaReport:
        """What those need that choose between this engine and others."""
        with self._condition:
            stats, slotted = self._progress.stats(len(self._jobs)), self._progress.slotted
        return ReplicaReport(
            serial=next(self._reports),
            waiting_tokens=stats.waiting_tokens,
            running=stats.running,
            kv_tokens=stats.kv_tokens,
            max_kv_tokens=stats.max_kv_tokens,
            tokens_per_s=self._budget.tokens_per_s,
            adapters=frozenset(info.name for info in self._library.infos() if info.digest in slotted),
        )

    def check_health(self) -> None:
        """See GenerationEngine."""
        if self._failure is not None:
            raise ComponentUnavailable("generator", self._failure)
        quiet_s = self._progress.quiet_s
        if (self._jobs or self._scorer.num_prompts) and quiet_s > self.stalled_after_s:
            raise ComponentUnavailable("generator", f"no step finished for {quiet_s:.0f} s")

    def close(self) -> None:
        """See GenerationEngine."""
        self._stop("it is shutting down")
        self._library.close()
        self._grammars.close()
        self._thread.join()

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

    def _note_arrival(self) -> None:
        if not self._jobs:  # there was nothing to make progress with
            self._progress.note()

    def _stop(self, why: str) -> None:
        """Refuse new requests and fail those in flight. The first reason stays."""
        with self._condition:
            self._failure = self._failure or why
            jobs = self._jobs.all()
            self._jobs.forget(jobs)
            self._condition.notify()
        post([(job.mailbox, ComponentUnavailable("generator", why)) for job in jobs])
        for scoring in self._scorer.jobs():
            self._scorer.end(scoring, ComponentUnavailable("generator", why))

    # What follows runs in the engine's thread.

    def _run(self, model_path: Path, device: str) -> None:
        try:
            take_cores(self._settings)
            self._load(model_path, device)
            self._warm_up()
            self._is_ready.set()
            while self._wait_for_work():
                self._step()
            self._pipeline.discard()
        except SwitchyardError as error:
            self._startup_error = error
            self._stop(str(error))
        except BaseException as error:
            _log.exception("the generation thread died")
            self._stop(f"its thread died of {type(error).__name__}: {error}")
        finally:
            if hasattr(self, "_runner"):
                self._runner.close()
            self._ranks.close()
            self._is_ready.set()

    def _load(self, model_path: Path, device: str) -> None:
        # In this thread, so that no other one of this process ever runs a parallel region: with a second team of
        # threads, OpenMP sees more threads than cores and puts them to sleep between regions, 8 ms a step on 2 cores.
        decoder = Decoder(
            model_path,
            self._spec,
            dtype=self._dtype,
            device=device,
            weights=self._settings.weights,
            ranks=self._ranks,
        )
        decoder.choose_formats()
        attention = build_attention(
            self._part,
            num_blocks=self._num_blocks,
            max_model_len=self.max_model_len,
            dtype=self._dtype,
            device=decoder.device,
        )
        if self._ranks.size > 1:
            # No graphs: sums between processes are not recorded.
            parts = (decoder, attention, self._store, self._library.weights)
            self._runner = self.parallel_runner_class(self._ranks, *parts)
            self._ranks.wait_for_all(LOAD_S)
            return
        graphs = build_graphs(decoder, attention, self._store, self._settings, max_model_len=self.max_model_len)
        self._runner = self.runner_class(decoder, attention, self._store, self._library.weights, graphs)

    def _warm_up(self) -> None:
        """Time steps of several sizes, then build the scheduler and compute the house's system prompt once."""
        settings = self._settings
        self._runner.prepare()
        max_tokens = min(settings.max_batched_tokens, self._num_blocks * BLOCK_TOKENS, self.max_model_len)
        self._budget = StepBudget(
            measure_steps(self._runner, max_decodes=settings.max_num_seqs, max_tokens=max_tokens),
            max_batched_tokens=settings.max_batched_tokens,
            max_stretch=settings.max_stretch,
            least_chunk_s=measure_least_chunk(self._runner, max_tokens=max_tokens),
        )
        self._slots = SlotTable(settings.adapter_slots)
        self._scheduler = Scheduler(
            num_blocks=self._num_blocks,
            max_num_seqs=settings.max_num_seqs,
            max_waiting=settings.max_num_seqs + settings.max_queued,
            budget=self._budget,
            max_pinned_blocks=min(self._num_blocks // 8, self._num_blocks - num_blocks_for(self.max_model_len)),
            slots=self._slots,
            is_loaded=self._library.is_loaded,
        )
        masks = MaskFiller(self.vocab_size, self._grammars.mask_size)
        self._execution = Execution(
            *(self._runner, self._scheduler, self._jobs, self._scorer),
            *(self._budget, self._progress, masks),
        )
        is_overlapped = settings.overlap != "off" and self._runner.max_repeated_tokens > 0
        self._pipeline = Pipeline(self._runner, self._scheduler, self._jobs, self._execution, is_on=is_overlapped)
        pin_system_prompt(self._prompts, self._model_digest, self._scheduler, self._runner)

    def _wait_for_work(self) -> bool:
        """Block while there is nothing to do. False: the engine is closing."""
        while True:
            with self._condition:
                if self._condition.wait_for(self._has_work, self._runner.idle_s):
                    return self._failure is None
            self._runner.beat()

    def _has_work(self) -> bool:
        has_news = self._jobs.has_news or self._scorer.has_news or self._library.has_changes
        has_work = self._scheduler.has_work or self._pipeline.is_flying
        return self._failure is not None or has_news or has_work

    def _step(self) -> None:
        self._take_in()
        decoding = self._scheduler.decoding() if self._settings.max_draft_tokens else []
        drafts = self._jobs.drafts(
            decoding,
            self._budget,
            max_each=self._settings.max_draft_tokens,
            max_tokens=self._settings.max_batched_tokens,
        )
        if self._pipeline.is_flying:
            self._pipeline.go_on(is_last=any(drafts))
        else:
            for sequence, draft in zip(decoding, drafts, strict=True):
                sequence.drafts = draft
            if copies := self._scorer.fork(self._scheduler):
                self._runner.copy_blocks(copies)
            step = self._scheduler.next_step()
            if step is not None and not self._pipeline.begin(step):
                self._execution.run(step)
        with self._condition:
            self._progress.publish(self._scheduler, self._slots)

    def _take_in(self) -> None:
        """Let new sequences in, and out those whose readers left, whose time is up or whose adapter is unreadable."""
        with self._condition:
            answers, scores = self._jobs.take(), self._scorer.take()
            # Together: an adapter that is gone was held by nobody but those that end here.
            unreadable, retired = self._library.take_changes()
        self._jobs.take_in(*answers, self._scheduler, monotonic())
        self._scorer.take_in(*scores, self._scheduler)
        for digest in retired:
            self._scheduler.forget_adapter(digest)
        for digest, error in unreadable.items():
            for job in self._jobs.all():
                if job.sequence.key.adapter == digest:
                    self._jobs.end(job, error)
            for scoring in self._scorer.jobs():
                if scoring.key.adapter == digest:
                    self._scorer.end(scoring, error)
