"""The retriever against a dictionary and brute force, under whatever sequence of calls hypothesis finds."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from executors import HeldExecutor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from retriever_moves import TENANTS, QuickEncoder, batches, deletes, filters, ids, puts, questions, wheres
from sqlalchemy import func, select
from stub_encoder import SETTINGS

from engine.errors import UnknownCollection, UnknownDocument
from engine.retrieval.preparing import PreparedDocument, prepare_document
from engine.retrieval.service import Retriever
from engine.retrieval.store import tables
from engine.values import DocumentWrite, Evidence, Query


class LiveModel(RuleBasedStateMachine):
    """`held` is the oracle: what each collection and tenant holds, by document id."""

    retriever_settings = SETTINGS

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = self.new_store()
        self.encoder = QuickEncoder()
        self.held: dict[tuple[str, str], dict[str, PreparedDocument]] = {}
        self.sent: dict[tuple[str, str, str], DocumentWrite] = {}
        self.versions: dict[str, int] = {}
        self.open()

    def new_store(self) -> str | None:
        """The URL of a database without anything in it, None for SQLite."""
        return None

    def open(self) -> None:
        self.freezing = HeldExecutor()
        places = {"store": self.store, "freezing": self.freezing}
        self.retriever = Retriever(self.folder / "data", self.encoder, self.retriever_settings, **places)
        self.chunker = self.retriever._writer._new_recipe.chunker

    @rule()
    def restart(self) -> None:
        self.retriever.close()
        self.open()

    @rule(where=wheres, item=puts)
    def put(self, where, item) -> None:
        self.write(where, [item])

    @rule(where=wheres, item=deletes)
    def delete(self, where, item) -> None:
        self.write(where, [item])

    @rule(where=wheres, items=batches)
    def batch(self, where, items) -> None:
        self.write(where, items)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def put_unchanged(self, data) -> None:
        collection, tenant, document_id = data.draw(st.sampled_from(sorted(self.sent)))
        embedded = self.encoder.num_passages
        (status,) = self.write((collection, tenant), [self.sent[collection, tenant, document_id]])
        assert (status, self.encoder.num_passages) == ("unchanged", embedded)

    @rule(where=wheres, question=questions, k=st.sampled_from((1, 3, 1000)), wanted=filters)
    def search(self, where, question, k, wanted) -> None:
        if not self.is_known(where):
            return
        evidence = self.ask(where, question, k, filter=wanted)
        documents = self.wanted(where, wanted)
        chunks = {chunk.id: (prepared, chunk) for prepared in documents for chunk in prepared.document.chunks}
        (asked,) = self.encoder.encode([question], is_query=True)
        scores = {id: float(self.embed(prepared, chunk) @ asked) for id, (prepared, chunk) in chunks.items()}
        assert evidence.version == self.versions[where[0]]
        best = sorted(scores.values(), reverse=True)[:k]
        assert [passage.score for passage in evidence.passages] == pytest.approx(best, abs=1e-5)
        assert len({passage.chunk for passage in evidence.passages}) == len(evidence.passages)
        for passage in evidence.passages:
            prepared, chunk = chunks[passage.chunk]
            assert passage.score == pytest.approx(scores[passage.chunk], abs=1e-5)
            assert (passage.document, passage.start, passage.end) == (prepared.document.id, chunk.start, chunk.end)
            assert passage.text == prepared.document.text[chunk.start : chunk.end]

    @rule(where=wheres, question=questions, wanted=filters)
    def search_by_words(self, where, question, wanted) -> None:
        if not self.is_known(where):
            return
        lexical, hybrid = (self.ask(where, question, 1000, filter=wanted, mode=mode) for mode in ("lexical", "hybrid"))
        texts = {
            chunk.id: set(prepared.document.text[chunk.start : chunk.end].split())
            for prepared in self.wanted(where, wanted)
            for chunk in prepared.document.chunks
        }
        with_words = {id for id, words in texts.items() if words & set(question.split())}
        assert {passage.chunk for passage in lexical.passages} == with_words
        assert sorted(passage.chunk for passage in hybrid.passages) == sorted(texts)
        assert lexical.version == hybrid.version == self.versions[where[0]]

    @rule(where=wheres, document_id=ids)
    def get(self, where, document_id) -> None:
        collection, tenant = where
        prepared = self.held.get(where, {}).get(document_id)
        if prepared is None:
            with pytest.raises((UnknownDocument, UnknownCollection)):
                self.retriever.get_document(collection, document_id, tenant=tenant)
            return
        found = self.retriever.get_document(collection, document_id, tenant=tenant)
        sent = self.sent[collection, tenant, document_id]
        assert (found["text"], found["title"]) == (prepared.document.text, prepared.document.title)
        assert found["content_hash"] == hashlib.sha256(sent.body).hexdigest()
        assert (found["chunks"], found["source"]) == (len(prepared.document.chunks), prepared.document.source)

    @rule(where=wheres, source=st.sampled_from((None, "site", "blog", "")), limit=st.integers(1, 3))
    def list_pages(self, where, source, limit) -> None:
        collection, tenant = where
        if not self.is_known(where):
            return
        listed: list[str] = []
        while page := self.retriever.list_documents(
            collection, source=source, after=listed[-1] if listed else None, limit=limit, tenant=tenant
        ):
            assert len(page) <= limit
            listed += [row["id"] for row in page]
        held = self.held.get(where, {}).items()
        assert listed == sorted(id for id, one in held if source is None or one.document.source == source)

    @invariant()
    def nothing_is_lost_doubled_or_left_behind(self) -> None:
        documents = [(where, one) for where, held in self.held.items() for one in held.values()]
        rows = {row["name"]: row for tenant in TENANTS for row in self.retriever.collections(tenant=tenant)}
        assert {name: row["version"] for name, row in rows.items()} == self.versions
        for tenant in TENANTS:
            for row in self.retriever.collections(tenant=tenant):
                mine = [one for where, one in documents if where == (row["name"], tenant)]
                assert (row["documents"], row["chunks"]) == (len(mine), sum(len(one.document.chunks) for one in mine))
        num_chunks = sum(len(one.document.chunks) for _, one in documents)
        assert self.retriever.status()["chunks"] == num_chunks
        with self.retriever._store.reading() as connection:
            stored = set(connection.execute(select(tables.embeddings.c.text_hash)).scalars())
            assert stored == {text_hash for _, one in documents for text_hash in one.texts}
            assert connection.execute(select(func.count(tables.chunks.c.pk))).scalar_one() == num_chunks

    def teardown(self) -> None:
        self.retriever.close()
        shutil.rmtree(self.folder)

    def is_known(self, where: tuple[str, str]) -> bool:
        """Whether the collection is there for this tenant: without documents of its own it does not hear of it."""
        return where[0] in self.versions and (not where[1] or bool(self.held.get(where)))

    def wanted(self, where: tuple[str, str], wanted: dict | None) -> list[PreparedDocument]:
        """What a filter lets through, by the oracle's own reading of it."""
        held = self.held.get(where, {})
        if wanted is None:
            return list(held.values())
        if "$source" in wanted:
            return [one for one in held.values() if one.document.source == wanted["$source"]]
        return [one for id, one in held.items() if id not in wanted["$id"]["$nin"]]

    def ask(self, where: tuple[str, str], question: str, k: int, *, mode: str = "dense", **fields) -> Evidence:
        (found,) = self.retriever.evidence([Query(question, where[0], k, tenant=where[1], mode=mode, **fields)])
        assert isinstance(found, Evidence), found
        return found

    def embed(self, prepared: PreparedDocument, chunk) -> np.ndarray:
        return self.encoder.encode([prepared.texts[chunk.text_hash]], is_query=True)[0]

    def write(self, where: tuple[str, str], items: list[DocumentWrite]) -> list[str]:
        """Write to both sides; the statuses, which the oracle knows as well."""
        collection, tenant = where
        held = self.held.get(where, {})
        after, statuses = dict(held), []
        for item in items:
            known = held.get(item.id)
            if item.delete:
                statuses.append("absent" if known is None else "deleted")
                after.pop(item.id, None)
                continue
            prepared = prepare_document(item, self.chunker)
            is_same = known is not None and known.document.content_hash == prepared.document.content_hash
            statuses.append("created" if known is None else "unchanged" if is_same else "updated")
            after[item.id] = prepared
        results = self.retriever.write(collection, items, tenant=tenant)
        assert [result.status for result in results] == statuses
        is_changed = any(status in ("created", "updated", "deleted") for status in statuses)
        version = self.versions.get(collection, 0) + is_changed
        assert {result.version for result in results} == {version}
        if version:
            self.versions[collection] = version
            self.held[where] = after
            gone = [item for item in items if item.delete]
            self.sent.update({(collection, tenant, item.id): item for item in items if not item.delete})
            for item in gone:
                self.sent.pop((collection, tenant, item.id), None)
        return statuses


class FrozenModel(LiveModel):
    """A few chunks are a frozen shard, and its build ends anywhere among the other steps."""

    retriever_settings = SETTINGS.model_copy(update={"frozen_rows": 3, "frozen_recall": 1.0})

    @rule()
    def build_shards(self) -> None:
        self.freezing.run()


class ShardedModel(LiveModel):
    """The vectors lie in three groups, which are searched at once."""

    retriever_settings = SETTINGS.model_copy(update={"shards": 3})


SEARCHED = settings(max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
for model in (LiveModel, FrozenModel, ShardedModel):
    model.TestCase.settings = SEARCHED
TestRetrieverAgreesWithADictionaryAndBruteForce = LiveModel.TestCase
TestRetrieverWithFrozenShardsAgreesWithThemToo = FrozenModel.TestCase
TestRetrieverWithSeveralShardsAgreesWithThemToo = ShardedModel.TestCase


def test_retriever_on_postgres_agrees_with_them_too(postgres):
    class OnPostgres(LiveModel):
        def new_store(self) -> str:
            return postgres.new_schema()

    run_state_machine_as_test(OnPostgres, settings=settings(SEARCHED, max_examples=10))
