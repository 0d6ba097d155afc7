"""Judged queries of a collection's tenant, and what was fitted to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from engine.errors import InvalidRequest
from engine.retrieval.store import tables
from engine.retrieval.store.store import Store
from engine.retrieval.store.write import in_batches
from engine.values import Judgement

MAX_JUDGEMENTS = 100_000
JudgementStatus = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Judgements; distinct queries with a relevant document that exists; judgements of documents that do not exist."""

    judgements: int
    queries: int
    unknown_documents: int


@dataclass(frozen=True, slots=True)
class StoredFit:
    """The last fit: `alpha` None keeps the default fusion. It is current where no judgement has changed since."""

    collection: str
    tenant: str
    alpha: float | None
    report: dict[str, Any]
    is_current: bool


class Judgements:
    """Reads and writes of both tables. Thread-safe; every change is durable when its method returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, collection: str, tenant: str, items: Sequence[Judgement]) -> list[JudgementStatus]:
        """Keep judgements, each in place of an earlier one of the same query and document.

        Returns: what became of each, in order.
        Raises: InvalidRequest for more than a tenant may have in a collection; StorageFull. Then nothing is kept.
        """
        j = tables.judgements
        with self._store.writing() as connection:
            owner = {"collection": _number(connection, collection), "tenant": tenant}
            grades = _grades(connection, owner, {_hash(item.query) for item in items})
            statuses: list[JudgementStatus] = []
            changed: dict[tuple[str, str], Judgement] = {}
            for item in items:
                key = (_hash(item.query), item.document)
                known = grades.get(key)
                statuses.append("created" if known is None else "unchanged" if known == item.grade else "updated")
                if known != item.grade:
                    grades[key] = item.grade
                    changed[key] = item
            if not changed:
                return statuses
            for (query_hash, document), item in changed.items():
                mine = _mine(j, owner, j.c.query_hash == query_hash, j.c.document == document)
                connection.execute(delete(j).where(*mine))
                row = {"query_hash": query_hash, "document": document, "grade": item.grade, "query": item.query}
                connection.execute(insert(j).values(**owner, **row))
            total = connection.execute(select(func.count()).select_from(j).where(*_mine(j, owner))).scalar_one()
            if total > MAX_JUDGEMENTS:
                raise InvalidRequest(
                    f"the collection would have {total:,} judgements; up to {MAX_JUDGEMENTS:,} are kept. "
                    "Send the judgements of fewer queries: a fit reads no more than 1,000 queries."
                )
            _raise_revision(connection, owner)
        return statuses

    def clear(self, collection: str, tenant: str) -> int:
        """Remove all judgements of the tenant and what was fitted to them; how many there were."""
        j, f = tables.judgements, tables.fits
        with self._store.writing() as connection:
            owner = {"collection": _number(connection, collection), "tenant": tenant}
            num_removed = connection.execute(delete(j).where(*_mine(j, owner))).rowcount
            # The revision goes on counting, so that a fit which is under way does not count as current.
            _raise_revision(connection, owner)
            connection.execute(update(f).where(*_mine(f, owner)).values(alpha=None, report={}, fitted=f.c.revision))
        return num_removed

    def counts(self, collection: str, tenant: str) -> Counts:
        """How much there is."""
        j = tables.judgements
        with self._store.reading() as connection:
            owner = {"collection": _number(connection, collection), "tenant": tenant}
            total = select(func.count()).select_from(j).where(*_mine(j, owner))
            queries = select(func.count(j.c.query_hash.distinct())).where(*_mine(j, owner, j.c.grade > 0, _exists()))
            return Counts(
                judgements=connection.execute(total).scalar_one(),
                queries=connection.execute(queries).scalar_one(),
                unknown_documents=connection.execute(total.where(~_exists())).scalar_one(),
            )

    def grades(self, collection: str, tenant: str, max_queries: int) -> tuple[int, dict[str, dict[str, int]]]:
        """The revision, and by query the grades of its documents that exist.

        Only queries with something relevant, the first `max_queries` in the order of their hashes: which ones does not
        depend on when they were judged, nor on their words.
        """
        j = tables.judgements
        with self._store.reading() as connection:
            owner = {"collection": _number(connection, collection), "tenant": tenant}
            usable = select(j.c.query_hash).distinct().where(*_mine(j, owner, j.c.grade > 0, _exists()))
            chosen = usable.order_by(j.c.query_hash).limit(max_queries)
            query = select(j.c.query, j.c.document, j.c.grade).where(*_mine(j, owner, _exists()))
            grades: dict[str, dict[str, int]] = {}
            for text, document, grade in connection.execute(
                query.where(j.c.query_hash.in_(chosen)).order_by(j.c.query_hash, j.c.document)
            ):
                grades.setdefault(text, {})[document] = grade
            return _revision(connection, owner), grades

    def save_fit(
        self, collection: str, tenant: str, revision: int, alpha: float | None, report: Mapping[str, Any]
    ) -> bool:
        """Keep what was fitted to `revision`; False, and nothing is kept, where judgements have changed since."""
        f = tables.fits
        with self._store.writing() as connection:
            owner = {"collection": _number(connection, collection), "tenant": tenant}
            values = {"fitted": revision, "alpha": alpha, "report": dict(report)}
            changed = connection.execute(update(f).where(*_mine(f, owner, f.c.revision == revision)).values(values))
            return changed.rowcount == 1

    def fits(self, collection: str | None = None, tenant: str | None = None) -> list[StoredFit]:
        """Every fit, or those of one collection and tenant."""
        f, c = tables.fits, tables.collections
        query = select(c.c.name, f.c.tenant, f.c.alpha, f.c.report, f.c.revision == f.c.fitted)
        query = query.join(c, c.c.id == f.c.collection)
        query = query.where(c.c.name == collection) if collection is not None else query
        query = query.where(f.c.tenant == tenant) if tenant is not None else query
        with self._store.reading() as connection:
            return [StoredFit(*row) for row in connection.execute(query)]


def _hash(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()


def _number(connection: Connection, collection: str) -> int:
    c = tables.collections
    return int(connection.execute(select(c.c.id).where(c.c.name == collection)).scalar_one())


def _mine(table: Any, owner: Mapping[str, Any], *more: Any) -> tuple[Any, ...]:
    return table.c.collection == owner["collection"], table.c.tenant == owner["tenant"], *more


def _exists() -> Any:
    """Whether a judgement's document is in the collection."""
    j, d = tables.judgements, tables.documents
    same = (d.c.collection == j.c.collection, d.c.tenant == j.c.tenant, d.c.id == j.c.document)
    return exists().where(*same).correlate(j)


def _grades(connection: Connection, owner: Mapping[str, Any], hashes: set[str]) -> dict[tuple[str, str], int]:
    j = tables.judgements
    found: dict[tuple[str, str], int] = {}
    for batch in in_batches(sorted(hashes)):
        query = select(j.c.query_hash, j.c.document, j.c.grade).where(*_mine(j, owner, j.c.query_hash.in_(batch)))
        found.update({(query_hash, document): grade for query_hash, document, grade in connection.execute(query)})
    return found


def _revision(connection: Connection, owner: Mapping[str, Any]) -> int:
    f = tables.fits
    return int(connection.execute(select(f.c.revision).where(*_mine(f, owner))).scalar() or 0)


def _raise_revision(connection: Connection, owner: Mapping[str, Any]) -> None:
    f = tables.fits
    if connection.execute(update(f).where(*_mine(f, owner)).values(revision=f.c.revision + 1)).rowcount == 0:
        connection.execute(insert(f).values(**owner, revision=1, fitted=0, alpha=None, report={}))
