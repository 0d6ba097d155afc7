"""What users said of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import delete, insert, select

from engine.retrieval.store import tables
from engine.retrieval.store.store import Store

FeedbackStatus = Literal["created", "updated"]


class FeedbackStore:
    """Thread-safe; a rating is durable when its method returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, tenant: str, response: str, content: Mapping[str, Any]) -> FeedbackStatus:
        """Keep what was said of a response, in place of what was said before. Raises: StorageFull."""
        f = tables.feedback
        with self._store.writing() as connection:
            old = connection.execute(delete(f).where(f.c.tenant == tenant, f.c.id == response)).rowcount
            connection.execute(insert(f).values(tenant=tenant, id=response, content=dict(content)))
        return "updated" if old else "created"

    def rows(self, tenant: str, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """At most `limit` ratings with their numbers, in order, from behind the number `after`."""
        f = tables.feedback
        query = select(f.c.pk, f.c.content).where(f.c.tenant == tenant, f.c.pk > after).order_by(f.c.pk).limit(limit)
        with self._store.reading() as connection:
            return [(number, content) for number, content in connection.execute(query)]
