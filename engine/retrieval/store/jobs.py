"""Jobs: long tasks of the server, kept in the database so that a client can ask for them after a restart."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import insert, select, update

from engine.retrieval.store import tables
from engine.retrieval.store.store import Store

State = Literal["queued", "running", "done", "failed", "cancelled"]
FinalState = Literal["done", "failed", "cancelled"]
MAX_ERRORS = 100
_MAX_ERROR_CHARS = 1000


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


class Jobs:
    """Creates, advances and reads jobs. Thread-safe; every change is durable when its method returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, kind: str, collection: str, *, tenant: str = "", total: int | None = None) -> str:
        """The id of a new job in the state `queued`; it cannot be guessed."""
        job_id, now = secrets.token_hex(16), time.time()
        values = {"id": job_id, "kind": kind, "collection": collection, "tenant": tenant, "state": "queued"}
        numbers: dict[str, Any] = {"total": total, "done": 0, "failed": 0, "errors": []}
        numbers |= {"created_at": now, "updated_at": now}
        with self._store.writing() as connection:
            connection.execute(insert(tables.jobs).values(**values, **numbers))
        return job_id

    def start(self, job_id: str) -> bool:
        """From `queued` to `running`; False where it was cancelled before."""
        now = time.time()
        return self._change(job_id, ("queued",), state="running", started_at=now, updated_at=now)

    def finish(self, job_id: str, state: FinalState) -> bool:
        """The end of a job that waits or runs; False where it has ended already, which stands."""
        now = time.time()
        return self._change(job_id, ("queued", "running"), state=state, finished_at=now, updated_at=now)

    def set_total(self, job_id: str, total: int) -> bool:
        """Say how many items there are; False where the job has ended."""
        return self._change(job_id, ("queued", "running"), total=total, updated_at=time.time())

    def advance(self, job_id: str, *, done: int = 0, errors: Sequence[tuple[str, str]] = ()) -> bool:
        """Count items that succeeded, and (item, error) of those that failed; False where the job no longer runs."""
        j = tables.jobs
        with self._store.writing() as connection:
            row = connection.execute(select(j.c.errors).where(j.c.id == job_id, j.c.state == "running")).first()
            if row is None:
                return False
            new = [{"item": item, "error": error[:_MAX_ERROR_CHARS]} for item, error in errors]
            values = {
                "done": j.c.done + done,
                "failed": j.c.failed + len(errors),
                "errors": (row.errors + new)[:MAX_ERRORS],
                "updated_at": time.time(),
            }
            connection.execute(update(j).where(j.c.id == job_id).values(values))
        return True

    def fail_interrupted(self) -> int:
        """At start-up: end the jobs that an earlier process left waiting or running. Returns: their number."""
        j, now = tables.jobs, time.time()
        error = {"item": "", "error": "the server ended before the job did; send it again."}
        with self._store.writing() as connection:
            rows = connection.execute(select(j.c.id, j.c.errors).where(j.c.state.in_(("queued", "running")))).all()
            for row in rows:
                values = {"state": "failed", "errors": [error, *row.errors][:MAX_ERRORS]}
                times = {"updated_at": now, "finished_at": now}
                connection.execute(update(j).where(j.c.id == row.id).values(**values, **times))
        return len(rows)

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
