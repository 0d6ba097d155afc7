"""What children do until they are killed, and the plan of writes that they and their parent both know."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from pathlib import Path

from executors import ImmediateExecutor
from forking import say
from sqlalchemy import select
from stub_encoder import SETTINGS, StubEncoder

from engine.retrieval.service import Retriever
from engine.retrieval.snapshots.snapshot import restore_snapshot, write_snapshot
from engine.retrieval.store import tables
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite

SOURCES = ("site", "blog")
DOCUMENTS_PER_SOURCE = 10
MAX_STEPS = 400
FIRST = SETTINGS.model_copy(update={"model": "first"})


@dataclass(frozen=True, slots=True)
class Step:
    """One write of a batch, or a snapshot of the collection."""

    collection: str
    tenant: str
    items: tuple[DocumentWrite, ...]
    is_snapshot: bool = False


def step_of(seed: str, number: int) -> Step:
    """The step of this number, whatever came before: an ingest, update, delete, sync of a source, or a snapshot."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choices(("write", "delete", "sync", "snapshot"), (6, 3, 2, 1))[0]
    collection, tenant = rng.choice(("docs", "docs", "more")), rng.choice(("", "acme"))
    if kind == "snapshot":
        return Step("docs", "", (), is_snapshot=True)
    source = rng.choice(SOURCES)
    ids = [f"{source}/{i}" for i in range(DOCUMENTS_PER_SOURCE)]
    if kind == "sync":
        kept = set(rng.sample(ids, rng.randint(3, 7)))
        items = [_put(id, rng.randrange(3)) if id in kept else DocumentWrite(id, delete=True) for id in ids]
    elif kind == "delete":
        items = [DocumentWrite(id, delete=True) for id in rng.sample(ids, rng.randint(1, 3))]
    else:
        items = [_put(id, rng.randrange(1000)) for id in rng.sample(ids, rng.randint(1, 6))]
    return Step(collection, tenant, tuple(items))


def _put(document_id: str, variant: int) -> DocumentWrite:
    if variant % 4 == 0:
        # No heading and no title, so that documents share these texts and their vectors.
        return DocumentWrite(document_id, b"Shared sentence %d of many words. " % (variant % 3) * 12, "text/plain")
    sentence = f"Sentence {variant} of {document_id.replace('/', ' ')}. "
    return DocumentWrite(document_id, f"# Title {variant}\n\n{sentence * (variant % 30 + 1)}".encode())


def open_retriever(data: Path) -> Retriever:
    return Retriever(data, StubEncoder(), SETTINGS)


def write_steps(data: str, seed: str, first: int, snapshot: str) -> None:
    """Takes steps from `first` on and acknowledges each with its number and version."""
    retriever = open_retriever(Path(data))
    for number in range(first, first + MAX_STEPS):
        step = step_of(seed, number)
        version = 0
        if not step.is_snapshot:
            version = retriever.write(step.collection, step.items, tenant=step.tenant)[0].version
        elif any(row["name"] == step.collection for row in retriever.collections()):
            version = write_snapshot(retriever._store, step.collection, Path(snapshot)).version
        say("wrote", number, version)


def write_both(data: str, seed: str, first: int) -> None:
    """Takes steps from `first` on, now searchable, now durable, and acknowledges each with its number."""
    retriever = open_retriever(Path(data))
    for number in range(first, first + MAX_STEPS):
        step = step_of(seed, number)
        if number % 3 == 0:
            retriever.write(step.collection, step.items, tenant=step.tenant)
        else:
            retriever.enqueue(step.collection, step.items, tenant=step.tenant)
        say("took", number)


def drain(data: str) -> None:
    """Opens a retriever and closes it once nothing waits in the inbox."""
    retriever = open_retriever(Path(data))
    wait_until_drained(retriever)
    retriever.close()


def wait_until_drained(retriever: Retriever) -> None:
    pause = threading.Event()
    while True:
        with retriever._store.reading() as connection:
            if connection.execute(select(tables.inbox.c.sequence).limit(1)).first() is None:
                return
        pause.wait(0.002)


def open_builder(data: Path) -> Retriever:
    """Builds generations at once, also those that were under way when the last process ended."""
    return Retriever(data, StubEncoder("first"), FIRST, load_encoder=StubEncoder, building=ImmediateExecutor())


def build_and_go_back(data: str) -> None:
    """Puts a second generation in place, writes, and takes the first one back."""
    retriever = open_builder(Path(data))
    retriever.generations.build("docs", model="second", chunk_tokens=16, switch="always")
    retriever.write("docs", [DocumentWrite("site/late", b"Sentence of late.")])
    retriever.generations.use("docs", 1)
    retriever.close()


def open_store(data: str) -> None:
    Store(Path(data)).close()


def save(data: str, target: str) -> None:
    store = Store(Path(data))
    write_snapshot(store, "docs", Path(target))
    store.close()


def restore(data: str, source: str) -> None:
    store = Store(Path(data))
    restore_snapshot(store, Path(source), replace=True)
    store.close()


def write_much(data: str) -> None:
    """Writes until a write is refused, and acknowledges those that were not."""
    retriever = open_retriever(Path(data))
    for number in range(10_000):
        body = b"".join(b"Much text %d %d. " % (number, i) for i in range(500))
        retriever.write("docs", [DocumentWrite(f"much/{number}", body)])
        say("wrote", number)


TASKS = {
    task.__name__: task
    for task in (write_steps, write_both, drain, build_and_go_back, open_store, save, restore, write_much)
}
