"""Builds, switches, rollbacks, writes in between and kills at any piece: what is searched equals a fresh ingest."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from executors import ImmediateExecutor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from interrupting import interrupt
from retriever_moves import WORDS, batches, questions
from sqlalchemy import select
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import Conflict, InvalidRequest, RequestError
from engine.retrieval.following import Follower
from engine.retrieval.generations import building, cutting, upcoming
from engine.retrieval.service import Retriever
from engine.retrieval.store import tables
from engine.values import DocumentWrite, Evidence, Query

MODELS = ("first", "second", "third")
TENANTS = ("", "acme")
FIRST = SETTINGS.model_copy(update={"model": "first"})
ENCODERS = {name: StubEncoder(name) for name in MODELS}
looks = st.integers(1, 25)


class GenerationsModel(RuleBasedStateMachine):
    """`documents` says what there is; nothing else is known of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.documents: dict[tuple[str, str], DocumentWrite] = {}
        # So that little data makes many pieces.
        self.sizes = [(cutting, "_DOCUMENTS_PER_PIECE", 2), (cutting, "_TEXTS_PER_PIECE", 2)]
        self.sizes += [(building, "_ROWS_PER_PIECE", 3), (upcoming, "_ROWS_PER_STEP", 3)]
        self.before = [getattr(module, name) for module, name, _ in self.sizes]
        for module, name, size in self.sizes:
            setattr(module, name, size)
        self.retriever = self.opened()
        self.write("", [DocumentWrite("site/a", " ".join(WORDS).encode())])
        self.follower = Follower(self.folder / "data", ENCODERS["first"], FIRST, load_encoder=ENCODERS.__getitem__)

    def opened(self) -> Retriever:
        options = {"building": ImmediateExecutor(), "fitting": ImmediateExecutor()}
        return Retriever(self.folder / "data", ENCODERS["first"], FIRST, load_encoder=ENCODERS.__getitem__, **options)

    @rule(tenant=st.sampled_from(TENANTS), items=batches)
    def write(self, tenant, items) -> None:
        self.retriever.write("docs", items, tenant=tenant)
        for item in items:
            self.documents.pop((tenant, item.id), None)
            if not item.delete:
                self.documents[tenant, item.id] = item

    @rule(
        model=st.sampled_from(MODELS),
        chunk_tokens=st.sampled_from((16, 30)),
        switch=st.sampled_from(("always", "never")),
        interruptions=st.dictionaries(looks, st.tuples(st.sampled_from(TENANTS), batches) | st.none(), max_size=6),
        stop_at=looks | st.none(),
    )
    def build(self, model, chunk_tokens, switch, interruptions, stop_at) -> None:
        """A write or, for None, a step of the follower, at some of the looks."""
        self.interrupted(interruptions, stop_at)
        with contextlib.suppress(InvalidRequest, Conflict):  # made so already, or too many
            self.retriever.generations.build("docs", model=model, chunk_tokens=chunk_tokens, switch=switch)
        self.go_on()

    @rule(
        data=st.data(),
        interruptions=st.dictionaries(looks, st.tuples(st.sampled_from(TENANTS), batches) | st.none(), max_size=4),
        stop_at=looks | st.none(),
    )
    def use(self, data, interruptions, stop_at) -> None:
        others = [row["generation"] for row in self.retriever.generations.list("docs") if row["state"] != "current"]
        if others:
            number = data.draw(st.sampled_from(others))
            self.interrupted(interruptions, stop_at)
            self.retriever.generations.use("docs", number)
            self.go_on()
            assert self.current()["generation"] == number

    @rule(data=st.data())
    def drop(self, data) -> None:
        others = [row["generation"] for row in self.retriever.generations.list("docs") if row["state"] != "current"]
        if others:
            self.retriever.generations.drop("docs", data.draw(st.sampled_from(others)))

    @rule()
    def restart(self) -> None:
        self.retriever.close()
        self.retriever = self.opened()

    @rule(question=questions)
    def compare_follower(self, question) -> None:
        self.follower.catch_up()
        wait_for_encoder(self.follower)
        for tenant in TENANTS:
            query = Query(question, "docs", 1000, tenant=tenant, mode="dense")
            (mine,), (theirs,) = self.follower.evidence([query]), self.retriever.evidence([query])
            if isinstance(theirs, RequestError):
                assert type(mine) is type(theirs)
                continue
            assert isinstance(mine, Evidence)
            assert (mine.version, mine.passages) == (theirs.version, theirs.passages)

    @rule(question=questions)
    def compare_with_a_fresh_ingest(self, question) -> None:
        made = self.current()
        sizes = {name: made[name] for name in ("chunk_tokens", "chunk_overlap_tokens")}
        fresh = Retriever(
            self.folder / "fresh",
            ENCODERS[made["encoder"]],
            SETTINGS.model_copy(update={"model": made["encoder"], **sizes}),
        )
        try:
            # A collection that has lost all its documents is there all the same.
            fresh.write("docs", [DocumentWrite("gone", b"Gone.")])
            fresh.write("docs", [DocumentWrite("gone", delete=True)])
            # In the order of the documents' numbers, which break ties.
            for tenant, item in self.in_order():
                fresh.write("docs", [item], tenant=tenant)
            assert chunks_of(self.retriever) == chunks_of(fresh)
            assert self.retriever.collection("docs")["chunks"] == sum(row[0] == "" for row in chunks_of(fresh))
            for tenant in TENANTS:
                for mode in ("dense", "lexical"):
                    query = Query(question, "docs", 1000, tenant=tenant, mode=mode)
                    (mine,), (theirs,) = self.retriever.evidence([query]), fresh.evidence([query])
                    assert found(mine, mode) == found(theirs, mode)
        finally:
            fresh.close()
            shutil.rmtree(self.folder / "fresh")
        self.check_embeddings()

    def check_embeddings(self) -> None:
        """Every chunk has its vector, and there is no other."""
        k, d, g, e = tables.chunks, tables.documents, tables.generations, tables.embeddings
        needed = select(g.c.digest, k.c.text_hash).join(d, d.c.pk == k.c.document_pk).distinct()
        needed = needed.join(g, (g.c.collection == d.c.collection) & (g.c.generation == k.c.generation))
        with self.retriever._store.reading() as connection:
            stored = {tuple(row) for row in connection.execute(select(e.c.encoder, e.c.text_hash))}
            assert stored == {tuple(row) for row in connection.execute(needed)}

    def in_order(self) -> list[tuple[str, DocumentWrite]]:
        d = tables.documents
        with self.retriever._store.reading() as connection:
            keys = connection.execute(select(d.c.tenant, d.c.id).order_by(d.c.pk)).all()
        assert {tuple(key) for key in keys} == set(self.documents)
        return [(key.tenant, self.documents[tuple(key)]) for key in keys]

    def interrupted(self, interruptions, stop_at) -> None:
        happens = {
            look: (self.follower.catch_up if what is None else partial(self.write, *what))
            for look, what in interruptions.items()
        }
        interrupt(self.retriever, happens, stop_at)

    def go_on(self) -> None:
        """Where the work was stopped, a new process finds and ends it."""
        if self.retriever.generations._stop._flag or self.retriever.generations._rows.under_way():
            self.restart()
        assert self.retriever.generations._rows.under_way() == []
        interrupt(self.retriever, {})

    def current(self) -> dict:
        return next(row for row in self.retriever.generations.list("docs") if row["state"] == "current")

    @precondition(lambda self: len(self.retriever.generations.list("docs")) > 5)
    @rule()
    def drop_all(self) -> None:
        for row in self.retriever.generations.list("docs"):
            if row["state"] != "current":
                self.retriever.generations.drop("docs", row["generation"])

    def teardown(self) -> None:
        try:
            self.compare_follower("volume")
            self.compare_with_a_fresh_ingest("volume disk")
        finally:
            self.follower.close()
            self.retriever.close()
            for (module, name, _), size in zip(self.sizes, self.before, strict=True):
                setattr(module, name, size)
            shutil.rmtree(self.folder)


def wait_for_encoder(follower: Follower) -> None:
    """One that a switch brought is loaded in a thread of its own."""
    thread = follower._encoders._thread
    if thread is not None:
        thread.join()
    follower.catch_up()


def found(evidence: Evidence | RequestError, mode: str) -> object:
    """By meaning: in order, as far as scores differ by more than rounding. By words: how rare they are counts chunks
    that are gone until files merge, so scores differ a little.
    """
    if isinstance(evidence, RequestError):
        return type(evidence)
    rows = [(one.document, one.chunk, one.text, one.start, one.end, one.heading) for one in evidence.passages]
    if mode == "lexical":
        return sorted(rows)
    scores = np.round([one.score for one in evidence.passages], 4)
    return sorted(zip(rows, scores.tolist(), strict=True))


def chunks_of(retriever: Retriever) -> list[tuple]:
    k, d, c = tables.chunks, tables.documents, tables.collections
    columns = (d.c.tenant, d.c.id, k.c.ordinal, k.c.id, k.c.start, k.c.end, k.c.heading, k.c.text_hash, d.c.num_chunks)
    query = select(*columns).join(d, d.c.pk == k.c.document_pk)
    query = query.join(c, (c.c.id == d.c.collection) & (c.c.generation == k.c.generation))
    with retriever._store.reading() as connection:
        return [tuple(row) for row in connection.execute(query.order_by(d.c.tenant, d.c.id, k.c.ordinal))]


GenerationsModel.TestCase.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWhatIsSearchedEqualsAFreshIngest = GenerationsModel.TestCase
