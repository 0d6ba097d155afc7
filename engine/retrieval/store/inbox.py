"""The inbox: writes that are durable and wait to be applied, each counted by a job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from engine.errors import InvalidRequest, Overloaded, RequestError, UnknownJob
from engine.retrieval.store import tables
from engine.retrieval.store.jobs import Jobs, add_job, count_items, end_job, extend_job
from engine.retrieval.store.store import Store
from engine.retrieval.store.write import in_batches
from engine.values import DocumentWrite, WriteResult

_RETRY_AFTER_S = 5
_KIND = "ingest"


@dataclass(frozen=True, slots=True)
class WaitingWrite:
    """A write of the inbox; `sequence` names it and is never given out again."""

    sequence: int
    job: str
    item: DocumentWrite


@dataclass(frozen=True, slots=True)
class WaitingBatch:
    """Writes of one tenant to one collection, in the order they came; their ids are distinct."""

    collection: str
    tenant: str
    writes: tuple[WaitingWrite, ...]


class Inbox:
    """Takes writes and hands them out in order. Thread-safe; every change is durable when its method returns."""

    def __init__(self, store: Store, max_waiting: int) -> None:
        self._store = store
        self._jobs = Jobs(store)
        self._max_waiting = max_waiting

    def put(self, collection: str, tenant: str, items: Sequence[DocumentWrite], *, job: str | None = None) -> str:
        """Keep writes with distinct ids; an earlier one of the same document that still waits is replaced.

        Args:
            job: the tenant's job to add them to; default: a new one.
        Returns: the job's id.
        Raises: Overloaded when the inbox is full; InvalidRequest for more than it can ever hold, or for a job that
            takes no more; UnknownJob; StorageFull.
        """
        if len(items) > self._max_waiting:
            raise InvalidRequest(
                f"the batch has {len(items)} items, retriever.max_pending_writes={self._max_waiting} may wait. "
                "Send fewer at once."
            )
        i = tables.inbox
        with self._store.writing() as connection:
            if job is None:
                job = add_job(connection, _KIND, collection, tenant, len(items))
            else:
                _check_takes_more(connection, job, collection, tenant)
                extend_job(connection, job, len(items))
            supersede(connection, collection, tenant, [item.id for item in items])
            num_waiting = connection.execute(select(func.count()).select_from(i)).scalar_one()
            if num_waiting + len(items) > self._max_waiting:
                setting = "retriever.max_pending_writes"
                raise Overloaded("the inbox of writes", num_waiting, setting, retry_after_s=_RETRY_AFTER_S)
            shared = {"job": job, "collection": collection, "tenant": tenant}
            connection.execute(insert(i), [{**shared, **_columns(item)} for item in items])
        return job

    def next_batch(self, max_items: int, max_bytes: int) -> WaitingBatch | None:
        """The first write and those after it of the same tenant and collection, None when nothing waits.

        Their jobs run from now on. One body may exceed `max_bytes`, several together do not.
        """
        i, j = tables.inbox, tables.jobs
        with self._store.reading() as connection:
            first = connection.execute(select(i.c.collection, i.c.tenant).order_by(i.c.sequence).limit(1)).first()
            if first is None:
                return None
            mine = (i.c.collection == first.collection, i.c.tenant == first.tenant)
            sizes = select(i.c.sequence, func.length(i.c.body)).where(*mine).order_by(i.c.sequence).limit(max_items)
            chosen: list[int] = []
            size = 0
            for sequence, num_bytes in connection.execute(sizes):
                size += num_bytes
                if chosen and size > max_bytes:
                    break
                chosen.append(sequence)
            query = select(i, j.c.state).join(j, j.c.id == i.c.job)
            rows = connection.execute(query.where(i.c.sequence.in_(chosen)).order_by(i.c.sequence)).all()
        for job in dict.fromkeys(row.job for row in rows if row.state == "queued"):
            self._jobs.start(job)
        writes = tuple(WaitingWrite(row.sequence, row.job, _item(row)) for row in rows)
        return WaitingBatch(first.collection, first.tenant, writes)

    def fail(self, write: WaitingWrite, error: RequestError) -> None:
        """Take out a write that cannot be applied."""
        with self._store.writing() as connection:
            finish(connection, [write], {write.item.id: WriteResult(write.item.id, "failed", 0, error=error)})

    def settle(self) -> None:
        """Find out what became of a write of which that is not known. Raises: StoreUnavailable."""
        self._store.settle()

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        with self._store.reading() as connection:
            return connection.execute(select(tables.inbox.c.sequence).limit(1)).first() is None

    def cancel(self, job: str, tenant: str) -> None:
        """Take out what still waits of a tenant's job and end it. Raises: UnknownJob."""
        if self._jobs.get(job, tenant=tenant) is None:
            raise UnknownJob(job)
        with self._store.writing() as connection:
            connection.execute(delete(tables.inbox).where(tables.inbox.c.job == job))
            end_job(connection, job, "cancelled")


def supersede(
    connection: Connection, collection: str, tenant: str, ids: Iterable[str], *, version: int | None = None
) -> None:
    """Take out the waiting writes of documents that a later write replaces; their jobs count them as done."""
    i = tables.inbox
    query = select(i.c.sequence, i.c.job).where(i.c.collection == collection, i.c.tenant == tenant)
    replaced: dict[int, str] = {}
    for batch in in_batches(ids):
        replaced |= {row.sequence: row.job for row in connection.execute(query.where(i.c.document.in_(batch)))}
    _take_out(connection, replaced)
    _count_by_job(connection, [(job, None) for job in replaced.values()], version)


def still_waiting(connection: Connection, writes: Sequence[WaitingWrite]) -> set[str]:
    """Ids of those documents whose writes nobody has replaced or cancelled."""
    i = tables.inbox
    query = select(i.c.document).where(i.c.sequence.in_([write.sequence for write in writes]))
    return set(connection.execute(query).scalars())


def finish(connection: Connection, writes: Sequence[WaitingWrite], results: Mapping[str, WriteResult]) -> None:
    """Take out the writes that have a result, by document id, and count them in their jobs."""
    handled = [(write, results[write.item.id]) for write in writes if write.item.id in results]
    _take_out(connection, [write.sequence for write, _ in handled])
    version = max((result.version for _, result in handled), default=0) or None
    _count_by_job(connection, [(write.job, result) for write, result in handled], version)


def count_waiting(connection: Connection, collection: str) -> int:
    """Writes of all tenants that wait for a collection."""
    query = select(func.count()).where(tables.inbox.c.collection == collection)
    return connection.execute(query).scalar_one()


def discard(connection: Connection, collection: str) -> None:
    """Take out what waits for a collection and cancel the jobs behind it."""
    i = tables.inbox
    jobs = connection.execute(select(i.c.job).where(i.c.collection == collection).distinct()).scalars().all()
    connection.execute(delete(i).where(i.c.collection == collection))
    for job in jobs:
        end_job(connection, job, "cancelled")


def _check_takes_more(connection: Connection, job: str, collection: str, tenant: str) -> None:
    j = tables.jobs
    columns = (j.c.kind, j.c.collection, j.c.state)
    row = connection.execute(select(*columns).where(j.c.id == job, j.c.tenant == tenant)).first()
    if row is None:
        raise UnknownJob(job)
    if row.kind != _KIND or row.collection != collection or row.state in ("failed", "cancelled"):
        raise InvalidRequest(
            f"job {job!r} takes no writes to {collection!r}: it is of kind {row.kind}, for collection "
            f"{row.collection!r}, and {row.state}. Leave job out, and a new one is made.",
            param="job",
        )


def _take_out(connection: Connection, sequences: Iterable[int]) -> None:
    for batch in in_batches(sequences):
        connection.execute(delete(tables.inbox).where(tables.inbox.c.sequence.in_(batch)))


def _count_by_job(
    connection: Connection, outcomes: Iterable[tuple[str, WriteResult | None]], version: int | None
) -> None:
    by_job: defaultdict[str, list[WriteResult | None]] = defaultdict(list)
    for job, result in outcomes:
        by_job[job].append(result)
    for job, results in by_job.items():
        errors = [(result.id, str(result.error)) for result in results if result is not None and result.error]
        count_items(connection, job, done=len(results) - len(errors), errors=errors, version=version)


def _columns(item: DocumentWrite) -> dict[str, Any]:
    return {
        "document": item.id,
        "is_delete": item.delete,
        "content_type": item.content_type,
        "title": item.title,
        "metadata": item.metadata,
        "body": item.body,
    }


def _item(row: Any) -> DocumentWrite:
    return DocumentWrite(row.document, row.body, row.content_type, row.title, row.metadata, row.is_delete)
