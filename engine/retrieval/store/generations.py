"""Generations of collections: rows that say how chunks were made, and what is under way with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, func, insert, select, update

from engine.errors import Conflict, InvalidRequest, UnknownGeneration
from engine.retrieval.encoding.protocol import EncoderIdentity
from engine.retrieval.store import tables
from engine.retrieval.store.jobs import FinalState, add_job, end_job, fail_job
from engine.retrieval.store.log_reader import SWITCH
from engine.retrieval.store.store import CollectionState, Store
from engine.retrieval.store.write import drop_unused_embeddings

# What is under way with a generation: it is built and, by this policy, put in place; or one that is there comes back.
Task = Literal["if-not-worse", "always", "never", "use"]
KIND = "generation"
# Each holds all chunks and vectors of the collection.
MAX_KEPT = 8


@dataclass(frozen=True, slots=True)
class Generation:
    """A row of the table, with its collection's name, version and time. `encoder` is empty until it was loaded."""

    collection: int
    name: str
    version: int
    collection_created_at: float
    number: int
    is_current: bool
    encoder: dict[str, Any]
    chunking: dict[str, Any]
    model: str | None
    created_at: float
    task: Task | None
    job: str | None
    report: dict[str, Any] | None

    def state(self) -> CollectionState:
        """The collection as it would be with this generation in place."""
        return CollectionState(
            *(self.collection, self.name, self.version, self.encoder, self.chunking, self.collection_created_at),
            generation=self.number,
            model=self.model,
        )


class Generations:
    """Reads and changes of the rows. Thread-safe; every change is durable when its method returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self, collection: str) -> list[Generation]:
        """Those of a collection that are kept, by number."""
        with self._store.reading() as connection:
            return read_generations(connection, collection)

    def under_way(self) -> list[Generation]:
        """Those of all collections with which something is under way, by the time when it was asked for."""
        with self._store.reading() as connection:
            return [one for one in read_generations(connection) if one.task is not None]

    def add(self, collection: str, chunking: Mapping[str, Any], model: str, task: Task) -> str:
        """A new generation to be built; the id of the job that counts it.

        Raises: Conflict where something is under way with the collection, or it has MAX_KEPT generations.
        """
        g = tables.generations
        with self._store.writing() as connection:
            kept = read_generations(connection, collection)
            _check_free(kept, collection)
            if len(kept) >= MAX_KEPT:
                numbers = ", ".join(str(one.number) for one in kept if not one.is_current)
                raise Conflict(
                    f"collection {collection!r} has {len(kept)} generations, as many as are kept. Drop one of "
                    f"{numbers} first: switchyard generations drop {collection} NUMBER"
                )
            number = next_number(connection, kept[0].collection)
            job = add_job(connection, KIND, collection, "", None)
            made = {"encoder": {}, "chunking": dict(chunking), "model": model, "digest": "", "is_dropped": False}
            row = {"collection": kept[0].collection, "generation": number, "created_at": time.time()}
            connection.execute(insert(g).values(**row, **made, task=task, job=job))
            return job

    def begin_use(self, collection: str, number: int) -> str:
        """Put an earlier generation back in place; the id of the job. Raises: UnknownGeneration, Conflict."""
        with self._store.writing() as connection:
            kept = read_generations(connection, collection)
            found = _find(kept, collection, number)
            _check_free(kept, collection)
            if found.is_current:
                raise InvalidRequest(f"generation {number} of collection {collection!r} is the current one already.")
            job = add_job(connection, KIND, collection, "", None)
            connection.execute(_row(found).values(task="use", job=job))
            return job

    def drop(self, collection: str, number: int) -> Generation:
        """Remove the chunks of a generation and the vectors that nothing else needs.

        Raises: UnknownGeneration; Conflict for the current one, and for one with which something is under way.
        """
        k, d = tables.chunks, tables.documents
        with self._store.writing() as connection:
            kept = read_generations(connection, collection)
            found = _find(kept, collection, number)
            if found.is_current:
                raise Conflict(
                    f"generation {number} of collection {collection!r} is the current one. Use another one first: "
                    f"switchyard generations use {collection} NUMBER"
                )
            if found.task is not None:
                raise Conflict(
                    f"generation {number} of collection {collection!r} is being built. Cancel that first: "
                    f"switchyard jobs {found.job} --cancel"
                )
            mine = select(d.c.pk).where(d.c.collection == found.collection)
            connection.execute(delete(k).where(k.c.generation == number, k.c.document_pk.in_(mine)))
            connection.execute(_row(found).values(is_dropped=True, report=None))
            drop_unused_embeddings(connection, None)
            return found

    def name_encoder(self, generation: Generation, encoder: EncoderIdentity, described: Mapping[str, Any]) -> None:
        """Record the encoder of a generation once it is loaded."""
        with self._store.writing() as connection:
            connection.execute(_row(generation).values(encoder=dict(described), digest=encoder.digest))

    def record_model(self, encoder: str, model: str) -> None:
        """Say where the encoder of this digest comes from, for generations made before that was recorded."""
        g = tables.generations
        old = (g.c.digest == encoder, g.c.model.is_(None))
        with self._store.reading() as connection:
            if connection.execute(select(g.c.generation).where(*old).limit(1)).first() is None:
                return
        with self._store.writing() as connection:
            connection.execute(update(g).where(*old).values(model=model))

    def end(
        self, generation: Generation, state: FinalState, *, report: Mapping[str, Any] | None = None, error: str = ""
    ) -> None:
        """Nothing is under way any more, and `report` (None: as before) says what came of it."""
        with self._store.writing() as connection:
            if is_under_way(connection, generation):
                end_task(connection, generation, state, report=report, error=error)

    def cancel(self, job: str) -> None:
        """End what a job counts; what was built of it stays."""
        with self._store.writing() as connection:
            for one in read_generations(connection):
                if one.job == job and one.task is not None:
                    end_task(connection, one, "cancelled")


def read_generations(connection: Connection, collection: str | None = None) -> list[Generation]:
    """Those kept of one collection, or of all, by number and within the connection's transaction."""
    g, c = tables.generations, tables.collections
    columns = (g.c.collection, c.c.name, c.c.version, c.c.created_at, g.c.generation, c.c.generation == g.c.generation)
    more = (g.c.encoder, g.c.chunking, g.c.model, g.c.created_at, g.c.task, g.c.job, g.c.report)
    query = select(*columns, *more).join(c, c.c.id == g.c.collection).where(~g.c.is_dropped)
    query = query if collection is None else query.where(c.c.name == collection)
    rows = connection.execute(query.order_by(g.c.generation, g.c.collection))
    return [Generation(*row) for row in rows]


def next_number(connection: Connection, collection: int) -> int:
    """One that no generation of the collection has had."""
    g = tables.generations
    query = select(func.max(g.c.generation)).where(g.c.collection == collection)
    return int(connection.execute(query).scalar() or 0) + 1


def is_under_way(connection: Connection, generation: Generation) -> bool:
    """Whether the generation's job still runs: it may have been cancelled."""
    g = tables.generations
    mine = (g.c.collection == generation.collection, g.c.generation == generation.number, g.c.job == generation.job)
    return connection.execute(select(g.c.generation).where(*mine, g.c.task.is_not(None))).first() is not None


def end_task(
    connection: Connection,
    generation: Generation,
    state: FinalState,
    *,
    report: Mapping[str, Any] | None = None,
    error: str = "",
    version: int | None = None,
) -> None:
    """`Generations.end` inside the caller's transaction; `version` is the collection's with the generation in place."""
    j = tables.jobs
    values = {"task": None} | ({} if report is None else {"report": dict(report)})
    connection.execute(_row(generation).values(values))
    if generation.job is not None:
        if error:
            fail_job(connection, generation.job, error)
        if version is not None:
            connection.execute(update(j).where(j.c.id == generation.job).values(version=version))
        end_job(connection, generation.job, state)


def put_in_place(connection: Connection, generation: Generation, version: int) -> None:
    """Make a generation that is complete the collection's, at this version, which is its next."""
    c, d, k, o = tables.collections, tables.documents, tables.chunks, tables.operations
    number = select(func.count()).where(k.c.document_pk == d.c.pk, k.c.generation == generation.number)
    num_chunks = number.scalar_subquery()
    # A row that need not change is not written: it drags its text along.
    changed = (d.c.collection == generation.collection, d.c.num_chunks != num_chunks)
    connection.execute(update(d).where(*changed).values(num_chunks=num_chunks))
    row = {"collection": generation.collection, "version": version, "op": SWITCH, "document_pk": 0, "tenant": ""}
    connection.execute(insert(o).values(**row, document=str(generation.number), at=time.time()))
    values = {"generation": generation.number, "version": version}
    connection.execute(update(c).where(c.c.id == generation.collection).values(values))


def _row(generation: Generation) -> Any:
    g = tables.generations
    return update(g).where(g.c.collection == generation.collection, g.c.generation == generation.number)


def _find(kept: list[Generation], collection: str, number: int) -> Generation:
    for one in kept:
        if one.number == number:
            return one
    raise UnknownGeneration(collection, number, [one.number for one in kept])


def _check_free(kept: list[Generation], collection: str) -> None:
    for one in kept:
        if one.task is not None:
            raise Conflict(
                f"generation {one.number} of collection {collection!r} is being built or put in place (job {one.job}). "
                f"Wait for it, or cancel it: switchyard jobs {one.job} --cancel"
            )
