"""The retriever from end to end, on a stub encoder."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
from executors import HeldExecutor
from sqlalchemy import event, update
from stub_encoder import DIM, SETTINGS, StubEncoder

from engine.config import RetrieverSettings
from engine.errors import (
    ComponentUnavailable,
    ConfigError,
    DataFolderError,
    InvalidRequest,
    ModelSourceError,
    StorageFull,
    UnknownCollection,
    UnknownDocument,
    UnparsableDocument,
    UnsupportedMediaType,
)
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.lexical import LexicalIndex
from engine.retrieval.index.lexical_leg import LexicalLeg
from engine.retrieval.service import Retriever
from engine.retrieval.store import tables
from engine.retrieval.store.write import Transaction
from engine.values import DocumentWrite, Evidence, Query

VOLUMES = b"""---
title: Volumes
---

A volume is local storage: a slice of the disk of one server, which only the machines on that server can use.

## Snapshots

Snapshots of a volume are taken every day and kept for five days, unless you ask for another time.
"""
REGIONS = b"# Regions\n\nAmsterdam, Madrid and Tokyo are regions.\n"


def doc(document_id: str, body: bytes = VOLUMES, **fields) -> DocumentWrite:
    return DocumentWrite(document_id, body, **fields)


def ask(retriever: Retriever, text: str, k: int = 3, **fields) -> Evidence:
    (found,) = retriever.evidence([Query(text, fields.pop("collection", "docs"), k, **fields)])
    assert isinstance(found, Evidence), found
    return found


def found_in(retriever: Retriever, text: str, k: int = 3, **fields) -> list[str]:
    return [passage.document for passage in ask(retriever, text, k, **fields).passages]


def test_written_documents_are_found_with_their_text_heading_and_offsets(retriever):
    results = retriever.write("docs", [doc("site/volumes.md"), doc("site/regions.md", REGIONS)])
    assert [(one.status, one.version, one.error) for one in results] == [("created", 1, None)] * 2
    evidence = ask(retriever, "which regions are there: Madrid or Tokyo?")
    best = evidence.passages[0]
    assert (best.document, best.title, best.heading) == ("site/regions.md", "Regions", "Regions")
    assert best.text == retriever.get_document("docs", "site/regions.md")["text"][best.start : best.end]
    assert [p.score for p in evidence.passages] == sorted((p.score for p in evidence.passages), reverse=True)
    assert (evidence.version, evidence.background) == (1, None)
    assert set(evidence.timings_ms) == {"embed", "search"}


def test_each_distinct_text_of_a_batch_is_embedded_once(retriever, encoder):
    retriever.write("docs", [doc("a")])
    retriever.write("more", [doc("b", REGIONS)])
    encoder.query_batches.clear()
    found = retriever.evidence(
        [Query("x", "docs", 1), Query("y", "docs", 2), Query("x", "more", 1), Query("x", "docs", 9)]
    )
    assert encoder.query_batches == [["x", "y"]]
    assert [[p.document for p in one.passages] for one in found] == [["a"], ["a", "a"], ["b"], ["a", "a"]]


def test_query_that_cannot_be_answered_does_not_fail_the_others(retriever):
    retriever.write("docs", [doc("a")])
    found = retriever.evidence(
        [
            Query("x", "nowhere", 1),
            Query("x", "docs", 1, filter={"a": {"$like": 1}}),
            Query("x", "docs", 0),
            Query("x\ud800", "docs", 1),
            Query("x", "docs", 1, min_version=2),
            Query("x", "docs", 1, min_version=1),
        ]
    )
    expected = [UnknownCollection, InvalidRequest, InvalidRequest, InvalidRequest, InvalidRequest, Evidence]
    assert [type(one) for one in found] == expected
    assert "known: docs" in str(found[0]) and "$like" in str(found[1])
    assert "min_version=2 is ahead of collection 'docs', which is at version 1" in str(found[4])
    assert retriever.evidence([]) == []


def test_update_replaces_all_passages_of_a_document_in_one_version(retriever):
    retriever.write("docs", [doc("a"), doc("b", REGIONS)])
    (result,) = retriever.write("docs", [doc("a", b"# Bananas\n\nYellow fruit.\n")])
    assert (result.status, result.version, result.chunks) == ("updated", 2, 1)
    passages = ask(retriever, "snapshots of a volume", k=50).passages
    assert {passage.text for passage in passages if passage.document == "a"} == {"# Bananas\n\nYellow fruit."}


def test_deleted_document_is_never_found_again(retriever):
    retriever.write("docs", [doc("a"), doc("b", REGIONS)])
    deleted, absent = retriever.write("docs", [DocumentWrite("a", delete=True), DocumentWrite("zzz", delete=True)])
    assert (deleted.status, deleted.version, absent.status) == ("deleted", 2, "absent")
    assert found_in(retriever, "snapshots of a volume", k=50) == ["b"]
    with pytest.raises(UnknownDocument):
        retriever.get_document("docs", "a")


def test_unchanged_document_is_skipped_without_embedding(retriever, encoder):
    retriever.write("docs", [doc("a", metadata={"x": 1, "y": 2})])
    embedded = encoder.num_passages
    (result,) = retriever.write("docs", [doc("a", metadata={"y": 2, "x": 1})])
    assert (result.status, result.version, result.chunks, result.embedded) == ("unchanged", 1, 2, 0)
    assert encoder.num_passages == embedded


@pytest.mark.parametrize("change", [{"title": "Other"}, {"metadata": {"x": 1}}, {"content_type": "text/plain"}])
def test_new_title_metadata_or_type_is_a_change(retriever, change):
    retriever.write("docs", [doc("a")])
    assert retriever.write("docs", [doc("a", **change)])[0].status == "updated"


def test_each_text_is_embedded_once_across_documents_and_updates(retriever, encoder):
    first, second = retriever.write("docs", [doc("a"), doc("b")])
    assert (first.embedded, second.embedded, encoder.num_passages) == (2, 0, 2)
    (moved,) = retriever.write("docs", [doc("c", VOLUMES.replace(b"every day", b"every hour"))])
    assert (moved.chunks, moved.embedded, encoder.num_passages) == (2, 1, 3)
    (elsewhere,) = retriever.write("more", [doc("d")])
    assert (elsewhere.embedded, encoder.num_passages) == (0, 3)


def test_failing_items_are_reported_and_stop_nothing(retriever):
    items = [
        doc("bad bytes", b"\xff"),
        doc("bad type", b"x", content_type="image/png"),
        doc("", b"x"),
        doc("tab\there", b"x"),
        doc("half \ud800", b"x"),
        doc("x" * 513, b"x"),
        doc("nan", b"x", metadata={"x": float("nan")}),
        doc("title", b"x", title="half \ud800"),
        doc("good"),
    ]
    results = retriever.write("docs", items)
    expected = [UnparsableDocument, UnsupportedMediaType, *[InvalidRequest] * 6, type(None)]
    assert [type(one.error) for one in results] == expected
    assert [one.status for one in results] == ["failed"] * 8 + ["created"]
    assert "document id '' is empty. Use source/relative path" in str(results[2].error)
    assert "has 513 characters, allowed are 512" in str(results[5].error)


def test_last_of_two_items_with_the_same_id_wins_and_the_other_says_so(retriever):
    first, second, third = retriever.write("docs", [doc("a"), doc("b"), doc("a", REGIONS)])
    assert (first.status, second.status, third.status) == ("failed", "created", "created")
    assert "'a' comes again later in this batch (item 3); only the last one is applied" in str(first.error)
    assert retriever.get_document("docs", "a")["title"] == "Regions"


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_malformed_collection_name_is_refused(retriever, name):
    with pytest.raises(InvalidRequest, match=r"is no valid name; allowed: 1 to 64 of A-Z a-z 0-9 _ \. -"):
        retriever.write(name, [doc("a")])


def test_collection_comes_into_being_with_its_first_document_only(retriever):
    results = retriever.write("docs", [doc("bad", b"\xff"), DocumentWrite("a", delete=True)])
    assert [(one.status, one.version) for one in results] == [("failed", 0), ("absent", 0)]
    assert retriever.collections() == []
    retriever.write("docs", [doc("a")])
    assert retriever.collection("docs") == {"name": "docs", "version": 1, "documents": 1, "chunks": 2, "sources": [""]}
    with pytest.raises(UnknownCollection, match="'other' is unknown; known: docs"):
        retriever.collection("other")


def test_document_without_text_is_kept_and_has_no_passages(retriever):
    (result,) = retriever.write("docs", [doc("a", b" \n")])
    assert (result.status, result.chunks) == ("created", 0)
    assert ask(retriever, "anything").passages == ()


def test_client_can_compute_the_content_hash_and_page_through_a_source(retriever):
    retriever.write("docs", [doc(f"site/{i}.md", b"Page %d" % i) for i in range(5)] + [doc("blog/1.md"), doc("loose")])
    page = retriever.list_documents("docs", source="site", after="site/1.md", limit=2)
    assert [row["id"] for row in page] == ["site/2.md", "site/3.md"]
    assert page[0] == {
        "id": "site/2.md",
        "source": "site",
        "title": None,
        "content_hash": hashlib.sha256(b"Page 2").hexdigest(),
        "chunks": 1,
        "version": 1,
    }
    assert retriever.collection("docs")["sources"] == ["", "blog", "site"]
    assert len(retriever.list_documents("docs", source=None, after=None, limit=100)) == 7


def test_document_comes_back_as_it_is_indexed(retriever):
    retriever.write("docs", [doc("site/a.md", metadata={"lang": "en"})])
    document = retriever.get_document("docs", "site/a.md")
    assert document["text"].startswith("A volume is local storage: a slice")
    assert (document["title"], document["metadata"], document["chunks"]) == ("Volumes", {"lang": "en"}, 2)


def test_tenants_of_a_collection_never_see_each_other(retriever):
    retriever.write("docs", [doc("a")], tenant="one")
    retriever.write("docs", [doc("b")], tenant="two")
    assert found_in(retriever, "volume", k=9, tenant="one") == ["a", "a"]
    assert found_in(retriever, "volume", k=9, tenant="two") == ["b", "b"]
    assert found_in(retriever, "volume", k=9) == []
    retriever.write("docs", [DocumentWrite("a", delete=True)], tenant="two")
    assert found_in(retriever, "volume", k=9, tenant="one") == ["a", "a"]
    with pytest.raises(UnknownDocument):
        retriever.get_document("docs", "a", tenant="two")
    with pytest.raises(InvalidRequest, match="tenant"):
        retriever.write("docs", [doc("a")], tenant="x" * 65)


def test_reopening_gives_the_same_results(open_retriever):
    retriever = open_retriever()
    for i in range(30):
        retriever.write("docs", [doc(f"p{i}", b"Page %d about thing %d.\n\n" % (i, i % 7) + REGIONS)])
    retriever.write("docs", [DocumentWrite(f"p{i}", delete=True) for i in range(0, 30, 3)])
    before = [ask(retriever, f"thing {i}", k=8) for i in range(5)]
    status = retriever.status()
    retriever.close()
    retriever = open_retriever()
    after = [ask(retriever, f"thing {i}", k=8) for i in range(5)]
    assert [one.passages for one in after] == [one.passages for one in before]
    assert [one.version for one in after] == [31] * 5
    assert retriever.status() == status
    assert (status["ready"], status["collections"], status["chunks"]) == (True, 1, 20)


def test_chunks_beyond_frozen_rows_move_into_shards_also_after_a_restart(open_retriever):
    settings = SETTINGS.model_copy(update={"frozen_rows": 20, "frozen_recall": 1.0})
    freezing = HeldExecutor()
    retriever = open_retriever(settings=settings, freezing=freezing)

    def ranked() -> list[tuple[str, float]]:
        # FAISS and the flat rows sum in another order.
        return [(one.document, round(one.score, 5)) for one in ask(retriever, "thing 3", k=9).passages]

    pages = [doc(f"p{i}", b"Page %d about thing %d.\n\n" % (i, i % 7) + REGIONS) for i in range(30)]
    retriever.write("docs", pages)
    exact = ranked()
    assert retriever.status()["frozen"] == []
    freezing.run()
    assert ranked() == exact
    (shard,) = retriever.status()["frozen"]
    assert (shard["chunks"], shard["dead"]) == (30, 0) and shard["reaches"][-1]["recall"] == 1
    retriever.write("docs", [DocumentWrite("p3", delete=True), doc("p10", REGIONS)])
    changed = ranked()
    assert retriever.status()["frozen"][0]["dead"] == 2
    assert not {"p3", "p10"} & {document for document, _ in changed}
    retriever.close()
    freezing = HeldExecutor()
    retriever = open_retriever(settings=settings, freezing=freezing)
    assert ranked() == changed
    assert freezing.run() == 1
    assert ranked() == changed
    assert [one["chunks"] for one in retriever.status()["frozen"]] == [29]


def test_frozen_rows_of_zero_keeps_every_search_exact(open_retriever):
    retriever = open_retriever(settings=SETTINGS.model_copy(update={"frozen_rows": 0}))
    assert isinstance(retriever._new_rows(DIM), CpuRows)


def test_closing_ends_the_thread_that_builds_shards(open_retriever):
    retriever = open_retriever(settings=SETTINGS.model_copy(update={"frozen_rows": 1}))
    retriever.write("docs", [doc("a")])
    ask(retriever, "volume")
    retriever.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("freezer")]


def settings_of(model: str, chunk_tokens: int = 30) -> RetrieverSettings:
    return SETTINGS.model_copy(update={"model": model, "chunk_tokens": chunk_tokens})


def write_with_the_first(open_retriever) -> None:
    """A collection whose encoder is not that of the settings to come."""
    retriever = open_retriever(StubEncoder("first"), settings_of("first"))
    retriever.write("docs", [doc("a")])
    retriever.close()


def test_collection_of_another_encoder_or_chunking_goes_on_by_its_own(open_retriever, caplog):
    write_with_the_first(open_retriever)
    loaded: list[str] = []

    def load(model: str) -> StubEncoder:
        loaded.append(model)
        return StubEncoder(model)

    retriever = open_retriever(StubEncoder("second"), settings_of("second", 20), load_encoder=load)
    assert "switchyard generations build docs" in caplog.text
    assert found_in(retriever, "volume", k=1) == ["a"]
    retriever.write("docs", [doc("b", b"Volumes cost money. " * 12)])
    retriever.write("new", [doc("c")])
    (other,) = retriever.status()["other_generations"]
    assert (other["collection"], other["encoder"], other["chunk_tokens"]) == ("docs", "first", 30)
    info = retriever.index_info()
    assert info.of("new").encoder == StubEncoder("second").identity.digest != info.of("docs").encoder
    for name, encoder in (("docs", "first"), ("new", "second")):
        np.testing.assert_array_equal(retriever.embed(["volume"], name), StubEncoder(encoder).encode(["volume"]))
        (found,) = retriever.evidence([Query("volume", name, 9, mode="dense", wants_clues=True)])
        assert found.clues.encoder == StubEncoder(encoder).identity.digest
    assert loaded == ["first"]


def test_questions_to_collections_of_two_encoders_are_embedded_once_by_each(open_retriever):
    write_with_the_first(open_retriever)
    first, second = StubEncoder("first"), StubEncoder("second")
    retriever = open_retriever(second, settings_of("second"), load_encoder=lambda _: first)
    retriever.write("new", [doc("c")])
    for encoder in (first, second):
        encoder.query_batches.clear()
    retriever.evidence([Query(text, name, 3) for text in ("volume", "volume", "disk") for name in ("docs", "new")])
    assert first.query_batches == second.query_batches == [["volume", "disk"]]


def test_encoder_that_cannot_be_had_is_named_with_both_digests(open_retriever):
    write_with_the_first(open_retriever)
    digests = [StubEncoder(name).identity.digest[:12] for name in ("first", "second", "third")]
    with pytest.raises(
        ModelSourceError,
        match=rf"'docs' was embedded by first \(digest {digests[0]}\), retriever.model "
        rf"is second \(digest {digests[1]}\)",
    ):
        open_retriever(StubEncoder("second"), settings_of("second"))
    changed = rf"digest {digests[0]}\), and first holds another encoder by now \(digest {digests[2]}\)"
    with pytest.raises(ModelSourceError, match=changed):
        open_retriever(StubEncoder("second"), settings_of("second"), load_encoder=lambda _: StubEncoder("third"))
    assert found_in(open_retriever(StubEncoder("first"), settings_of("first")), "volume", k=1) == ["a"]


def test_model_of_a_collection_from_before_it_was_recorded_is_recorded_at_the_next_start(open_retriever):
    write_with_the_first(open_retriever)
    retriever = open_retriever(StubEncoder("first"), settings_of("first"))
    with retriever._store.writing() as connection:
        connection.execute(update(tables.generations).values(model=None))
    retriever.close()
    with pytest.raises(ModelSourceError, match=r"where that one came from is not recorded. Set retriever.model back"):
        open_retriever(StubEncoder("second"), settings_of("second"), load_encoder=StubEncoder)
    open_retriever(StubEncoder("first"), settings_of("first")).close()
    retriever = open_retriever(StubEncoder("second"), settings_of("second"), load_encoder=StubEncoder)
    assert found_in(retriever, "volume", k=1) == ["a"]


def test_chunks_that_the_encoder_cannot_read_whole_are_a_configuration_error(open_retriever):
    with pytest.raises(ConfigError, match=r"retriever.chunk_tokens=200 does not fit .* reads 64 tokens"):
        open_retriever(settings=RetrieverSettings())


def test_number_of_shards_may_change_at_a_restart_and_changes_no_answer(open_retriever):
    answers = []
    for shards in (1, 4, 2):
        retriever = open_retriever(settings=SETTINGS.model_copy(update={"shards": shards}))
        if not answers:
            retriever.write(
                "docs", [doc(f"site/{i}.md", VOLUMES + b"\n## Region %d\n\nMadrid %d." % (i, i)) for i in range(9)]
            )
            retriever.write("docs", [DocumentWrite("site/4.md", delete=True)])
        asked = [
            ask(retriever, "is there a volume in Madrid?", 30, mode=mode) for mode in ("dense", "lexical", "hybrid")
        ]
        answers.append([[(one.document, one.start, one.score) for one in found.passages] for found in asked])
        retriever.close()
    assert answers[0] == answers[1] == answers[2]
    assert all(len(passages) > 0 for passages in answers[0])


@pytest.mark.parametrize("store_at", ["sqlite"], indirect=True)
def test_full_disk_leaves_searches_and_store_as_they_were(retriever):
    retriever.write("docs", [doc("a")])

    def limit_size(connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 60")

    event.listen(retriever._store._engine, "begin", limit_size)
    with pytest.raises(StorageFull):
        retriever.write("docs", [DocumentWrite("a", delete=True), doc("b", b"word " * 100_000)])
    assert found_in(retriever, "Madrid", k=9) == ["a", "a"]
    assert retriever.collection("docs")["version"] == 1
    assert retriever.write("docs", [doc("b", REGIONS)])[0].version == 2
    assert sorted(found_in(retriever, "Madrid", k=9)) == ["a", "a", "b"]


def test_searches_during_writes_see_whole_writes_only(retriever):
    """Every write replaces two documents that say the same; a search that saw half a write would find two sayings."""
    retriever.write("docs", [doc("a", b"saying 0"), doc("b", b"saying 0")])
    stop, torn = threading.Event(), []

    def search():
        while not stop.is_set():
            evidence = ask(retriever, "saying", k=9)
            sayings = [passage.text for passage in evidence.passages]
            if sayings != [f"saying {evidence.version - 1}"] * 2:
                torn.append((evidence.version, sayings))

    searchers = [threading.Thread(target=search) for _ in range(2)]
    for searcher in searchers:
        searcher.start()
    for i in range(1, 30):
        retriever.write("docs", [doc("a", b"saying %d" % i), doc("b", b"saying %d" % i)])
    stop.set()
    for searcher in searchers:
        searcher.join()
    assert torn == []


def test_concurrent_writers_lose_nothing(retriever):
    def write(writer: int):
        for i in range(10):
            retriever.write(
                "docs", [doc(f"own/{writer}/{i}", b"text %d" % i), doc("shared", b"writer %d %d" % (writer, i))]
            )

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    info = retriever.collection("docs")
    assert (info["documents"], info["chunks"], info["version"]) == (31, 31, 30)
    assert len(ask(retriever, "text", k=100).passages) == 31


def test_closed_retriever_says_that_it_is_shutting_down(retriever):
    retriever.write("docs", [doc("a")])
    retriever.close()
    for call in (
        lambda: retriever.evidence([Query("x", "docs", 1)]),
        lambda: retriever.write("docs", [doc("b")]),
        lambda: retriever.get_document("docs", "a"),
        retriever.collections,
    ):
        with pytest.raises(ComponentUnavailable, match="shutting down"):
            call()
    assert retriever.status()["ready"] is False


def test_write_that_the_store_refuses_leaves_the_lexical_leg_as_it_was(open_retriever, monkeypatch):
    retriever = open_retriever()
    retriever.write("docs", [doc("a")])

    def refuse(_):
        raise StorageFull("the disk")

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", refuse)
        with pytest.raises(StorageFull):
            retriever.write("docs", [doc("b", REGIONS), DocumentWrite("a", delete=True)])
    # Until the next write builds it anew, that leg is left out rather than wrong.
    assert found_in(retriever, "Madrid", mode="hybrid") == ["a", "a"]
    (lexical,) = retriever.evidence([Query("Madrid", "docs", 3, mode="lexical")])
    assert isinstance(lexical, ComponentUnavailable)
    retriever.write("docs", [doc("c", REGIONS)])
    assert found_in(retriever, "Madrid", mode="lexical") == ["c"]
    retriever.close()
    assert found_in(open_retriever(), "Madrid", mode="lexical") == ["c"]


def test_lexical_index_that_cannot_be_written_fails_no_write(retriever, monkeypatch, caplog):
    retriever.write("docs", [doc("a")])

    def fail(*_):
        raise DataFolderError("indexes: no space")

    with monkeypatch.context() as patch:
        patch.setattr(LexicalIndex, "commit", fail)
        patch.setattr(LexicalIndex, "rebuild", fail)
        assert retriever.write("docs", [doc("b", REGIONS)])[0].status == "created"
    assert "searched by meaning alone" in caplog.text
    assert found_in(retriever, "Madrid", k=9) and "b" in found_in(retriever, "Madrid", k=9)
    retriever.write("docs", [DocumentWrite("a", delete=True)])
    assert found_in(retriever, "Madrid", mode="lexical") == ["b"]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_deletion_that_the_lexical_index_lost_is_noticed_before_the_next_search(
    open_retriever, monkeypatch, caplog, is_restarted
):
    retriever = open_retriever()
    retriever.write("docs", [doc("a", REGIONS), doc("b", REGIONS)])
    commit = LexicalIndex.commit
    with monkeypatch.context() as patch:
        patch.setattr(LexicalIndex, "commit", lambda self, removed, *rest: commit(self, (), *rest))
        if is_restarted:  # killed before anybody looked
            patch.setattr(LexicalLeg, "show", lambda *_: None)
        retriever.write("docs", [DocumentWrite("a", delete=True)])
    if is_restarted:
        retriever.close()
        retriever = open_retriever()
    else:
        assert "2 chunks, not 1; it is rebuilt" in caplog.text
    assert found_in(retriever, "Madrid", mode="lexical") == ["b"]
    assert found_in(retriever, "Madrid", mode="hybrid") == ["b"]
    retriever.write("docs", [doc("c", REGIONS)])
    assert sorted(found_in(retriever, "Madrid", mode="lexical")) == ["b", "c"]


@pytest.mark.parametrize("store_at", ["sqlite"], indirect=True)
def test_index_of_an_earlier_collection_of_the_same_name_is_not_taken_for_ours(open_retriever, tmp_path):
    retriever = open_retriever()
    retriever.write("docs", [doc("old", b"zebra")])
    retriever.close()
    for file in (tmp_path / "data").glob("knowledge.sqlite3*"):
        file.unlink()
    retriever = open_retriever()
    retriever.write("docs", [doc("new", b"giraffe")])
    assert found_in(retriever, "zebra", mode="lexical") == []
    retriever.close()
    retriever = open_retriever()
    assert found_in(retriever, "giraffe zebra", mode="lexical") == ["new"]
    assert len(list((tmp_path / "data" / "indexes").iterdir())) == 1


def test_search_by_words_alone_embeds_nothing(retriever, encoder):
    retriever.write("docs", [doc("site/volumes.md"), doc("site/regions.md", REGIONS)])
    encoder.query_batches.clear()
    assert found_in(retriever, "Madrid", mode="lexical", wants_similarities=False) == ["site/regions.md"]
    assert encoder.query_batches == []
    words, both = retriever.evidence(
        [
            Query("Madrid", "docs", 1, mode="lexical", wants_similarities=False),
            Query("the disk of one server", "docs", 1),
        ]
    )
    assert encoder.query_batches == [["the disk of one server"]]
    assert [one.passages[0].document for one in (words, both)] == ["site/regions.md", "site/volumes.md"]


def test_hybrid_search_joins_scores_or_ranks_as_configured(open_retriever):
    scores = {}
    for fusion in ("scores", "ranks"):
        retriever = open_retriever(settings=SETTINGS.model_copy(update={"fusion": fusion}))
        retriever.write("docs", [doc("site/volumes.md"), doc("site/regions.md", REGIONS)])
        passages = ask(retriever, "Amsterdam, Madrid and Tokyo are regions.").passages
        assert (passages[0].document, passages[0].score) == ("site/regions.md", pytest.approx(1.0))
        scores[fusion] = [passage.score for passage in passages]
        retriever.close()
    # One word of the second and third passages is asked for, if any: their scores are far off, their ranks are not.
    assert max(scores["scores"][1:]) < min(scores["ranks"][1:])


def test_weight_of_one_leg_alone_ranks_as_that_leg(open_retriever):
    for weight, mode in ((1.0, "dense"), (0.0, "lexical")):
        retriever = open_retriever(settings=SETTINGS.model_copy(update={"dense_weight": weight}))
        retriever.write("docs", [doc("site/volumes.md"), doc("site/regions.md", REGIONS)])
        for question in ("snapshots of volumes", "regions like Tokyo"):
            assert found_in(retriever, question)[0] == found_in(retriever, question, mode=mode)[0]
        retriever.close()
