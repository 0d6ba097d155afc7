"""Judged queries in, a fusion weight out: fitted in the background, kept with the collection, used by its searches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import BehindStore, SwitchyardError
from engine.retrieval.encoding.encoders import Encoders
from engine.retrieval.fitting import fit
from engine.retrieval.index.freezing import step_behind
from engine.retrieval.index.fusion import MIN_JUDGED
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.judged import MAX_QUERIES, judged_queries
from engine.retrieval.store.judgements import Judgements, JudgementStatus
from engine.retrieval.store.store import Store
from engine.values import Judgement

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Task:
    collection: str
    tenant: str


class Judging:
    """Keeps judgements and fits the weight anew whenever they change. Thread-safe; one fit at a time."""

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        live: Mapping[str, LiveCollection],
        *,
        alpha: float | None,
        executor: Executor | None = None,
    ) -> None:
        """
        Args:
            encoders: those of the collections.
            live: the collections by name. Where another generation takes a collection's place, `follow` is called.
            alpha: of the default fusion, None for ranks.
            executor: runs the fits; default: one thread of low priority.
        """
        self._judgements = Judgements(store)
        self._encoders = encoders
        self._live = live
        self._alpha = alpha
        self._executor = executor or ThreadPoolExecutor(1, "fitting", initializer=step_behind)
        # A fit that ends must not give its weight back to a tenant whose judgements are just being removed.
        self._changing = threading.Lock()
        self._is_stopped = threading.Event()
        self._waiting: set[_Task] = set()
        self._problems: dict[_Task, str] = {}

    def load(self) -> None:
        """Use what was fitted before, and fit what was not, or was for another encoder or default."""
        for one in self._judgements.fits():
            live = self._live[one.collection]
            default = self._default(live)
            made_for = {name: one.report.get(name) for name in default}
            if one.report and made_for["encoder"] == default["encoder"]:
                live.use_alpha(one.tenant, one.alpha)
            if not one.is_current or (one.report and made_for != default):
                self._start(_Task(one.collection, one.tenant))

    def prepare(self, collection: str, live: LiveCollection) -> None:
        """Let a generation that is to take the collection's place weigh as before, where its encoder is the same."""
        for one in self._judgements.fits(collection):
            if one.report.get("encoder") == live.encoder:
                live.use_alpha(one.tenant, one.alpha)

    def follow(self, collection: str) -> None:
        """Fit anew, now that another generation has taken the collection's place."""
        for one in self._judgements.fits(collection):
            if one.report or not one.is_current:
                self._start(_Task(one.collection, one.tenant))

    def judged_tenants(self, collection: str) -> list[str]:
        """Tenants that have judged queries of the collection."""
        return [one.tenant for one in self._judgements.fits(collection)]

    def grades(self, collection: str, tenant: str) -> dict[str, dict[str, int]]:
        """By query the grades of its documents that exist; a fit reads no more of them."""
        return self._judgements.grades(collection, tenant, MAX_QUERIES)[1]

    def put(self, collection: str, tenant: str, items: Sequence[Judgement]) -> list[JudgementStatus]:
        """Keep judgements, durable when this returns, and start a fit where any has changed."""
        statuses = self._judgements.put(collection, tenant, items)
        if any(status != "unchanged" for status in statuses):
            self._start(_Task(collection, tenant))
        return statuses

    def clear(self, collection: str, tenant: str) -> int:
        """Remove the tenant's judgements; its searches go back to the default fusion. Returns: how many there were."""
        with self._changing:
            num_removed = self._judgements.clear(collection, tenant)
            self._live[collection].use_alpha(tenant, None)
        self._problems.pop(_Task(collection, tenant), None)
        return num_removed

    def describe(self, collection: str, tenant: str) -> dict[str, Any]:
        """What `GET /v1/collections/{c}/judgements` shows."""
        task = _Task(collection, tenant)
        counts = self._judgements.counts(collection, tenant)
        kept = next(iter(self._judgements.fits(collection, tenant)), None)
        return {
            **asdict(counts),
            "missing": max(0, MIN_JUDGED - counts.queries),
            "is_fitting": task in self._waiting,
            "problem": self._problems.get(task),
            "weight": None if kept is None else kept.alpha,
            "fit": (kept.report.get("fit") if kept is not None else None),
        }

    def close(self) -> None:
        """Stop the fit that is running, within seconds; the next start begins it again."""
        self._is_stopped.set()
        self._executor.shutdown(cancel_futures=True)

    def _start(self, task: _Task) -> None:
        with self._changing:
            if task in self._waiting:
                return
            self._waiting.add(task)
        try:
            self._executor.submit(self._run, task)
        except RuntimeError:  # closed: the next start sees that the fit is missing
            return

    def _run(self, task: _Task) -> None:
        try:
            while not self._is_stopped.is_set() and not self._fit(task):
                pass
            self._problems.pop(task, None)
        except _Stopped:
            return
        except SwitchyardError as error:
            self._fail(task, str(error))
        except Exception as error:
            _log.error("the fit of collection %s failed", task.collection, exc_info=error)
            self._fail(task, f"an unexpected error happened ({type(error).__name__}); the server's log has the details")

    def _fail(self, task: _Task, why: str) -> None:
        with self._changing:
            self._problems[task] = why
            self._waiting.discard(task)

    def _fit(self, task: _Task) -> bool:
        """Fit to the judgements as they are now; False where they have changed meanwhile."""
        revision, grades = self._judgements.grades(task.collection, task.tenant, MAX_QUERIES)
        live = self._live[task.collection]
        encoder = self._encoders.held(live.encoder)
        assert encoder is not None
        asked = (live, encoder, task.collection, task.tenant, grades, self._check)
        try:
            judged = judged_queries(*asked) if len(grades) >= MIN_JUDGED else []
        except BehindStore:
            return False  # another generation has taken its place
        found = fit(judged, self._alpha)
        alpha = found.alpha if found is not None and found.is_used else None
        shown = None if found is None else {**asdict(found), "fitted_at": time.time()}
        with self._changing:
            report = {**self._default(live), "fit": shown}
            if self._live[task.collection] is not live:
                return False
            if not self._judgements.save_fit(task.collection, task.tenant, revision, alpha, report):
                return False
            live.use_alpha(task.tenant, alpha)
            self._waiting.discard(task)
            return True

    def _default(self, live: LiveCollection) -> dict[str, Any]:
        """What a fit is made for."""
        return {"encoder": live.encoder, "default_alpha": self._alpha}

    def _check(self) -> None:
        if self._is_stopped.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The retriever closes; nobody waits for the fit."""
