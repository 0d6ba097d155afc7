"""The retriever: documents in, evidence out. A plain class, thread-safe, that a deployment wraps."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config import RetrieverSettings
from engine.errors import (
    InvalidRequest,
    StoreUnavailable,
    UnknownJob,
)
from engine.retrieval.backlog import Backlog
from engine.retrieval.encoding.encoders import LoadEncoder
from engine.retrieval.encoding.protocol import EncoderLike, RerankerLike
from engine.retrieval.foreground import Foreground
from engine.retrieval.generations.placing import OwnCollections
from engine.retrieval.generations.service import GenerationService
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.judging import Judging
from engine.retrieval.preparing import check_collection_name
from engine.retrieval.reading import Reader
from engine.retrieval.recipe import Recipe, new_recipe
from engine.retrieval.store.feedback import FeedbackStatus, FeedbackStore
from engine.retrieval.store.generations import KIND, Generations
from engine.retrieval.store.inbox import Inbox
from engine.retrieval.store.jobs import Job, Jobs
from engine.retrieval.store.judgements import JudgementStatus
from engine.retrieval.store.store import CollectionState, Store
from engine.retrieval.writer import Writer
from engine.retrieval.writing import WritePlan
from engine.values import DocumentWrite, Judgement, WriteResult

_MAX_TENANT_CHARS = 64

_log = logging.getLogger(__name__)


class Retriever(Reader):
    """Owns the data folder, the encoder's use and the vector rows of every collection."""

    def __init__(
        self,
        data: Path,
        encoder: EncoderLike,
        settings: RetrieverSettings,
        reranker: RerankerLike | None = None,
        *,
        store: str | None = None,
        device: str = "cpu",
        freezing: Executor | None = None,
        fitting: Executor | None = None,
        building: Executor | None = None,
        load_encoder: LoadEncoder | None = None,
    ) -> None:
        """Open the knowledge base in `data` and load its vectors onto `device` (torch's name).

        `store` is the URL of a PostgreSQL database, None keeps an SQLite file in `data`.
        `freezing` builds the frozen shards, `fitting` fits fusion weights and `building` makes generations; default: a
        thread of low priority each. `load_encoder` loads those of collections that another one made.

        Raises: DataFolderError when the folder cannot be used; ModelSourceError when the encoder of a collection cannot
            be had; ConfigError when the settings do not fit the encoder.
        """
        super().__init__(encoder, settings, reranker, device=device, freezing=freezing, load_encoder=load_encoder)
        recipe = new_recipe(1, encoder, self._chunking, settings.model)
        self._recipes: dict[str, Recipe] = {}
        foreground = Foreground()
        self._store = Store(data, url=store, passage_memory_bytes=settings.passage_memory_bytes)
        self._indexes = data / "indexes"
        self._jobs = Jobs(self._store)
        self._feedback = FeedbackStore(self._store)
        self._inbox = Inbox(self._store, settings.max_pending_writes)
        self._writer = Writer(
            *(self._store, self._recipes, recipe),
            *(self._live, self._new_owned),
            foreground=foreground,
            threads=settings.threads,
            check_open=self._check_open,
        )
        self._backlog = Backlog(self._inbox, self._jobs, self._writer.apply)
        self._judging = Judging(self._store, self._encoders, self._live, alpha=self._alpha, executor=fitting)
        self._place = OwnCollections(
            *(self._store, self._encoders, self._judging),
            live=self._live,
            recipes=self._recipes,
            new_live=self._new_live,
            indexes=self._indexes,
            alpha=self._alpha,
        )
        self.generations = GenerationService(
            *(self._store, settings, self._place, foreground),
            lambda name: self._check_known(name, ""),
            executor=building,
        )
        try:
            self._jobs.fail_interrupted()
            Generations(self._store).record_model(encoder.identity.digest, settings.model)
            for state in self._store.collections():
                self._place.open(state)
            self._judging.load()
            self._store.passages.hold()
        except BaseException:
            self._freezer.close()
            self._judging.close()
            self.generations.close()
            self._store.close()
            if self._pool is not None:
                self._pool.shutdown()
            raise
        self._remove_other_indexes()
        for other in self._other_generations():
            _log.warning(
                "collection %s is served by its own encoder %s and chunks of %d tokens, not as the settings say; "
                "to build what they ask for: %s",
                *(other[name] for name in ("collection", "encoder", "chunk_tokens", "build")),
            )
        self.generations.resume()
        if not self._inbox.is_empty():
            self._backlog.notify()

    def write(self, collection: str, items: Sequence[DocumentWrite], *, tenant: str = "") -> list[WriteResult]:
        """Apply a batch as one version: durable and searchable when this returns.

        An item that fails is reported and never stops the rest. The first document creates the collection.
        Returns: a result per item, in order.
        Raises: InvalidRequest for the name of the collection or tenant; StorageFull, with nothing of the batch kept.
        """
        self._check_writable(collection, tenant)
        try:
            return self._writer.write(collection, items, tenant)
        except StoreUnavailable:
            self._backlog.notify()  # which finds out what is not known
            raise

    def enqueue(
        self, collection: str, items: Sequence[DocumentWrite], *, tenant: str = "", job: str | None = None
    ) -> list[WriteResult]:
        """Make a batch durable and apply it later, in the order of all writes; `job` says how far that is.

        Args:
            job: the tenant's job to add the batch to; default: a new one.
        Returns: a result per item, in order: accepted, or what is wrong with it as far as is seen without parsing it.
        Raises: InvalidRequest for the name of the collection or tenant, or for a job that takes no more; UnknownJob;
            Overloaded when too many writes wait; StorageFull.
        """
        self._check_writable(collection, tenant)
        plan = WritePlan(items)
        plan.check_cheaply()
        items = plan.sound_items()
        if items:
            try:
                job = self._inbox.put(collection, tenant, items, job=job)
            finally:
                self._backlog.notify()  # after a lost answer, they may be there
        live = self._live.get(collection)
        return plan.accepted(job, 0 if live is None else live.version)

    def job(self, job_id: str, *, tenant: str = "") -> dict[str, Any]:
        """One job of the tenant, as `GET /v1/jobs/{id}` shows it. Raises: UnknownJob."""
        self._check_open()
        job = self._jobs.get(job_id, tenant=tenant)
        if job is None:
            raise UnknownJob(job_id)
        return self._shown([job])[0]

    def jobs(self, *, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        """The tenant's newest jobs, the newest first."""
        self._check_open()
        return self._shown(self._jobs.recent(tenant=tenant, limit=limit))

    def cancel_job(self, job_id: str, *, tenant: str = "") -> dict[str, Any]:
        """Take out what still waits of a job; one that has ended stays as it is. Raises: UnknownJob."""
        self._check_open()
        found = self._jobs.get(job_id, tenant=tenant)
        if found is not None and found.kind == KIND:
            self.generations.cancel(job_id)
        else:
            self._inbox.cancel(job_id, tenant)
        return self.job(job_id, tenant=tenant)

    def judge(self, collection: str, items: Sequence[Judgement], *, tenant: str = "") -> list[JudgementStatus]:
        """Keep judgements, each in place of an earlier one of its query and document, and fit the weight of meaning.

        Returns: per item what became of it; durable. The fit goes on in the background.
        Raises: UnknownCollection; InvalidRequest for too many; StorageFull, with none of them kept.
        """
        self._check_known(collection, tenant)
        return self._judging.put(collection, tenant, items)

    def judgements(self, collection: str, *, tenant: str = "") -> dict[str, Any]:
        """How many judgements the tenant has, and what was fitted to them. Raises: UnknownCollection."""
        self._check_known(collection, tenant)
        return self._judging.describe(collection, tenant)

    def forget_judgements(self, collection: str, *, tenant: str = "") -> int:
        """Remove the tenant's judgements and what was fitted; how many there were. Raises: UnknownCollection."""
        self._check_known(collection, tenant)
        return self._judging.clear(collection, tenant)

    def build_generation(self, collection: str, **asked: Any) -> dict[str, Any]:
        """Begin another generation; its job as `job` shows it. See GenerationService.build."""
        self._check_open()
        return self.job(self.generations.build(collection, **asked))

    def use_generation(self, collection: str, number: int) -> dict[str, Any]:
        """Begin to put a kept generation in place; its job as `job` shows it. See GenerationService.use."""
        self._check_open()
        return self.job(self.generations.use(collection, number))

    def keep_feedback(self, response: str, content: dict[str, Any], *, tenant: str = "") -> FeedbackStatus:
        """Keep what a user said of a response, in place of an earlier word; durable. Raises: StorageFull."""
        self._check_open()
        return self._feedback.put(tenant, response, content)

    def feedback(self, *, after: int, limit: int, tenant: str = "") -> list[tuple[int, dict[str, Any]]]:
        """A page of what the tenant's users said, by ascending number, from behind the number `after`."""
        self._check_open()
        return self._feedback.rows(tenant, after, limit)

    def close(self) -> None:
        """Finish the running write, close the store and give up the folder; may be called twice.

        What waits in the inbox is applied after the next start.
        """
        self._freezer.close()
        self._judging.close()
        self.generations.close()
        self._backlog.stop()
        self._is_closed = True
        self._backlog.close()
        with self._store.turn():
            for live in self._live.values():
                live.close()
            self._store.close()
        if self._pool is not None:
            self._pool.shutdown()

    def _shown(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        if any(job.is_finished for job in jobs):
            # The database says so a moment before searches see the write that ended it; that write's turn is over here.
            with self._store.turn():
                pass
        return [
            {
                **{name: value for name, value in asdict(job).items() if name not in ("tenant", "updated_at")},
                "version": job.version if job.is_finished else None,
                "progress": job.progress,
                "eta_s": job.eta_s(time.time()),
                "waiting_for": None if job.is_finished else self._problem_of(job),
            }
            for job in jobs
        ]

    def _problem_of(self, job: Job) -> str | None:
        return self.generations.problem if job.kind == KIND else self._backlog.problem

    def _check_writable(self, collection: str, tenant: str) -> None:
        self._check_open()
        check_collection_name(collection)
        _check_tenant(tenant)

    def _new_owned(self, name: str, created_at: float, version: int, recipe: Recipe) -> LiveCollection:
        """Of a collection that a write has just made."""
        state = CollectionState(
            *(0, name, version, {}, recipe.chunking, created_at), generation=recipe.generation, model=recipe.model
        )
        return self._new_live(state, recipe.encoder, self._place.folder(state))

    def _remove_other_indexes(self) -> None:
        """Indexes of collections that are no more."""
        ours = {live.folder for live in self._live.values()}
        if self._indexes.is_dir():
            for folder in set(self._indexes.iterdir()) - ours:
                shutil.rmtree(folder, ignore_errors=True)


def _check_tenant(tenant: str) -> None:
    if len(tenant) > _MAX_TENANT_CHARS or not tenant.isprintable():
        raise InvalidRequest(
            f"tenant {tenant[:80]!a} is not valid; allowed: up to {_MAX_TENANT_CHARS} printable characters.",
            param="tenant",
        )
