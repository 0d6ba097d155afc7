"""Jobs: long tasks of the server, kept in the database so that a client can ask for them after a restart."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from engine.retrieval.store import tables
from engine.retrieval.store.store import Store

State = Literal["queued", "running", "done", "failed", "cancelled"]
FinalState = Literal["done", "failed", "cancelled"]
MAX_ERRORS = 100
MAX_FINISHED = 10_000
_MAX_ERROR_CHARS = 1000
_OPEN: tuple[State, ...] = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the table `jobs`; times are seconds since 1970. Of the errors the first 100 are kept."""

    id: str
    kind: str
    collection: str
    tenant: str
    state: State
    total: int | None
    done: int
    failed: int
    errors: list[dict[str, str]]
    created_at: float
    started_at: float | None
    updated_at: float
    finished_at: float | None
    version: int | None

    @property
    def is_finished(self) -> bool:
        """Whether nothing of it waits or runs any more."""
        return self.state not in _OPEN

    @property
    def progress(self) -> float:
        """Share of its items that are handled, failed ones included, from 0 to 1."""
        if not self.total:
            return float(self.state == "done")
        return min(1.0, (self.done + self.failed) / self.total)

    def eta_s(self, now: float) -> float | None:
        """Seconds until its end at the rate it had so far, None while there is no rate."""
        handled = self.done + self.failed
        if self.state != "running" or self.started_at is None or self.total is None or handled == 0:
            return None
        return max(0.0, (self.total - handled) * (now - self.started_at) / handled)


class Jobs:
    """Creates, advances and reads jobs. Thread-safe; every change is durable when its method returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, kind: str, collection: str, *, tenant: str = "", total: int | None = None) -> str:
        """The id of a new job in the state `queued`; it cannot be guessed."""
        with self._store.writing() as connection:
            return add_job(connection, kind, collection, tenant, total)

    def start(self, job_id: str) -> bool:
        """From `queued` to `running`; False where it was cancelled before."""
        now = time.time()
        return self._change(job_id, ("queued",), state="running", started_at=now, updated_at=now)

    def finish(self, job_id: str, state: FinalState) -> bool:
        """The end of a job that waits or runs; False where it has ended already, which stands."""
        with self._store.writing() as connection:
            return end_job(connection, job_id, state)

    def set_total(self, job_id: str, total: int) -> bool:
        """Say how many items there are; False where the job has ended."""
        return self._change(job_id, _OPEN, total=total, updated_at=time.time())

    def advance(self, job_id: str, *, done: int = 0, errors: Sequence[tuple[str, str]] = ()) -> bool:
        """Count items that succeeded, and (item, error) of those that failed; False where the job no longer runs."""
        j = tables.jobs
        with self._store.writing() as connection:
            is_running = exists().where(j.c.id == job_id, j.c.state == "running")
            if not connection.execute(select(is_running)).scalar():
                return False
            _count(connection, job_id, done, errors)
        return True

    def fail_interrupted(self) -> int:
        """At start-up: end the jobs that an earlier process left waiting or running, but for those that go on: their
        items are in the inbox, or they build a generation. Returns: their number.
        """
        j, i, g = tables.jobs, tables.inbox, tables.generations
        goes_on = exists().where(i.c.job == j.c.id) | exists().where(g.c.job == j.c.id, g.c.task.is_not(None))
        with self._store.writing() as connection:
            query = select(j.c.id).where(j.c.state.in_(_OPEN), ~goes_on)
            rows = connection.execute(query).all()
            for row in rows:
                fail_job(connection, row.id, "the server ended before the job did; send it again.")
                end_job(connection, row.id, "failed")
        return len(rows)

    def forget_old(self, keep: int = MAX_FINISHED) -> None:
        """Drop all but the `keep` jobs that finished last."""
        j = tables.jobs
        newest = select(j.c.finished_at).where(j.c.finished_at.is_not(None)).order_by(j.c.finished_at.desc())
        with self._store.reading() as connection:
            oldest_kept = connection.execute(newest.limit(1).offset(keep - 1)).scalar()
        if oldest_kept is not None:
            with self._store.writing() as connection:
                connection.execute(delete(j).where(j.c.finished_at < oldest_kept))

    def get(self, job_id: str, *, tenant: str = "") -> Job | None:
        """The tenant's job of this id, None where there is none."""
        j = tables.jobs
        found = self._read(select(j).where(j.c.id == job_id, j.c.tenant == tenant))
        return found[0] if found else None

    def recent(self, *, tenant: str = "", limit: int = 100) -> list[Job]:
        """The tenant's jobs, the newest first."""
        j = tables.jobs
        return self._read(select(j).where(j.c.tenant == tenant).order_by(j.c.created_at.desc(), j.c.id).limit(limit))

    def _change(self, job_id: str, states: tuple[State, ...], **values: Any) -> bool:
        j = tables.jobs
        query = update(j).where(j.c.id == job_id, j.c.state.in_(states)).values(values)
        with self._store.writing() as connection:
            return connection.execute(query).rowcount == 1

    def _read(self, query: Any) -> list[Job]:
        with self._store.reading() as connection:
            return [Job(*row) for row in connection.execute(query)]


def add_job(connection: Connection, kind: str, collection: str, tenant: str, total: int | None) -> str:
    """`Jobs.create` inside the caller's transaction."""
    job_id, now = secrets.token_hex(16), time.time()
    values = {"id": job_id, "kind": kind, "collection": collection, "tenant": tenant, "state": "queued"}
    numbers: dict[str, Any] = {"total": total, "done": 0, "failed": 0, "errors": []}
    numbers |= {"created_at": now, "updated_at": now}
    connection.execute(insert(tables.jobs).values(**values, **numbers))
    return job_id


def end_job(connection: Connection, job_id: str, state: FinalState) -> bool:
    """`Jobs.finish` inside the caller's transaction."""
    j, now = tables.jobs, time.time()
    query = update(j).where(j.c.id == job_id, j.c.state.in_(_OPEN))
    return connection.execute(query.values(state=state, updated_at=now, finished_at=now)).rowcount == 1


def fail_job(connection: Connection, job_id: str, error: str) -> None:
    """Say, ahead of the errors of items, why a job fails as a whole."""
    j = tables.jobs
    known = connection.execute(select(j.c.errors).where(j.c.id == job_id)).scalar_one()
    errors = [{"item": "", "error": error[:_MAX_ERROR_CHARS]}, *known][:MAX_ERRORS]
    connection.execute(update(j).where(j.c.id == job_id).values(errors=errors))


def extend_job(connection: Connection, job_id: str, more: int) -> None:
    """Add items to a job that waits, runs or is done; one that is done runs again."""
    j = tables.jobs
    mine = update(j).where(j.c.id == job_id)
    total = func.coalesce(j.c.total, 0) + more
    connection.execute(mine.values(total=total, finished_at=None, updated_at=time.time()))
    connection.execute(mine.where(j.c.state == "done").values(state="running"))


def advance_job(connection: Connection, job_id: str, done: int, left: int | None = None) -> None:
    """Count items of a job that runs from now on; `left` are those that are still to come, None: as was said before."""
    j, now = tables.jobs, time.time()
    mine = update(j).where(j.c.id == job_id)
    connection.execute(mine.where(j.c.state == "queued").values(state="running", started_at=now))
    values: dict[str, Any] = {"done": j.c.done + done, "updated_at": now}
    if left is not None:
        values["total"] = j.c.done + done + left
    connection.execute(mine.values(values))


def count_items(
    connection: Connection,
    job_id: str,
    *,
    done: int,
    errors: Sequence[tuple[str, str]] = (),
    version: int | None = None,
) -> None:
    """Count handled items inside the caller's transaction; the last of them ends the job.

    Args:
        errors: (item, error) of each that failed.
        version: the collection's with these items applied.
    """
    j = tables.jobs
    _count(connection, job_id, done, errors)
    if version is not None:
        connection.execute(update(j).where(j.c.id == job_id).values(version=version))
    is_last = exists().where(j.c.id == job_id, j.c.done + j.c.failed >= j.c.total)
    if connection.execute(select(is_last)).scalar():
        end_job(connection, job_id, "done")


def _count(connection: Connection, job_id: str, done: int, errors: Sequence[tuple[str, str]]) -> None:
    j = tables.jobs
    known = connection.execute(select(j.c.errors).where(j.c.id == job_id)).scalar_one()
    new = [{"item": item, "error": error[:_MAX_ERROR_CHARS]} for item, error in errors]
    values = {
        "done": j.c.done + done,
        "failed": j.c.failed + len(errors),
        "errors": (known + new)[:MAX_ERRORS],
        "updated_at": time.time(),
    }
    connection.execute(update(j).where(j.c.id == job_id).values(values))
