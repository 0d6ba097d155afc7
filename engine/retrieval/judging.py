"""Judged queries in, a fusion weight out: fitted in the background, kept with the collection, used by its searches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import RequestError, SwitchyardError
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.fitting import fit
from engine.retrieval.index.freezing import step_behind
from engine.retrieval.index.fusion import FUSED_DEPTH, MIN_JUDGED, JudgedQuery
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.store.judgements import Judgements, JudgementStatus
from engine.retrieval.store.store import Store
from engine.values import Evidence, Judgement, Query

# More say little more about one number, and a fit of these takes seconds.
MAX_QUERIES = 1_000
# Queries that are embedded and searched between two looks at what else is to be done; searches wait for that many.
_QUERIES_PER_PIECE = 4

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
        encoder: EncoderLike,
        live: Mapping[str, LiveCollection],
        *,
        alpha: float | None,
        executor: Executor | None = None,
    ) -> None:
        """
        Args:
            live: the collections by name.
            alpha: of the default fusion, None for ranks.
            executor: runs the fits; default: one thread of low priority.
        """
        self._judgements = Judgements(store)
        self._encoder = encoder
        self._live = live
        self._default = {"encoder": encoder.identity.digest, "default_alpha": alpha}
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
            made_for = {name: one.report.get(name) for name in self._default}
            if one.report and made_for["encoder"] == self._default["encoder"]:
                self._live[one.collection].use_alpha(one.tenant, one.alpha)
            if not one.is_current or (one.report and made_for != self._default):
                self._start(_Task(one.collection, one.tenant))

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
        judged = self._judged(task, grades) if len(grades) >= MIN_JUDGED else []
        found = fit(judged, self._alpha)
        alpha = found.alpha if found is not None and found.is_used else None
        shown = None if found is None else {**asdict(found), "fitted_at": time.time()}
        with self._changing:
            report = {**self._default, "fit": shown}
            if not self._judgements.save_fit(task.collection, task.tenant, revision, alpha, report):
                return False
            self._live[task.collection].use_alpha(task.tenant, alpha)
            self._waiting.discard(task)
            return True

    def _judged(self, task: _Task, grades: Mapping[str, Mapping[str, int]]) -> list[JudgedQuery]:
        texts = list(grades)
        judged = []
        for first in range(0, len(texts), _QUERIES_PER_PIECE):
            self._check()
            piece = texts[first : first + _QUERIES_PER_PIECE]
            judged += [
                _judged_query(dense, lexical, grades[text])
                for text, (dense, lexical) in zip(piece, self._legs(task, piece), strict=True)
            ]
        return judged

    def _legs(self, task: _Task, texts: Sequence[str]) -> list[tuple[Evidence, Evidence]]:
        """What meaning and words alone find for each text."""
        asked = [
            Query(text, task.collection, FUSED_DEPTH, tenant=task.tenant, mode=mode, wants_similarities=False)
            for text in texts
            for mode in ("dense", "lexical")
        ]
        found = self._live[task.collection].search(asked, self._encoder.encode(texts, is_query=True))
        legs: list[Evidence] = []
        for one in found:
            if isinstance(one, RequestError):
                raise one
            legs.append(one)
        return list(zip(legs[::2], legs[1::2], strict=True))

    def _check(self) -> None:
        if self._is_stopped.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The retriever closes; nobody waits for the fit."""


def _judged_query(dense: Evidence, lexical: Evidence, grades: Mapping[str, int]) -> JudgedQuery:
    """The legs by numbers of chunks, and what is relevant by numbers of documents."""
    chunks: dict[str, int] = {}
    documents: dict[str, int] = {}
    of: dict[int, int] = {}
    for passage in (*dense.passages, *lexical.passages):
        key = chunks.setdefault(passage.chunk, len(chunks))
        of[key] = documents.setdefault(passage.document, len(documents))
    scores = [{chunks[passage.chunk]: passage.score for passage in leg.passages} for leg in (dense, lexical)]
    gains = {documents.setdefault(document, len(documents)): float(grade) for document, grade in grades.items()}
    return JudgedQuery(scores[0], scores[1], gains, of)
