"""Followers of the operations log: what they find is what the writing retriever finds at the same version."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from retriever_moves import drop_collection
from sqlalchemy import delete
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import (
    BehindStore,
    ComponentUnavailable,
    DataFolderError,
    InvalidRequest,
    ModelSourceError,
    UnknownCollection,
)
from engine.retrieval.following import Follower
from engine.retrieval.index.own_folder import OwnFolder
from engine.retrieval.service import Retriever
from engine.retrieval.store import tables
from engine.values import DocumentWrite, Evidence, Query

FIRST = SETTINGS.model_copy(update={"model": "first"})
REGIONS = b"# Regions\n\nAmsterdam, Madrid and Tokyo are regions.\n"
FRUIT = b"# Fruit\n\nBananas are yellow.\n"


# With PostgreSQL, the texts of passages that a version had are in memory.
IN_A_FILE = pytest.mark.parametrize("store_at", ["sqlite"], indirect=True)


@pytest.fixture
def open_follower(tmp_path: Path, monkeypatch, store_at) -> Iterator[Callable[..., Follower]]:
    """Opens followers of the data folder of `retriever`; closes them."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    opened: list[Follower] = []

    def open_one(encoder: StubEncoder | None = None, **options: Any) -> Follower:
        data = tmp_path / "data"
        opened.append(Follower(data, encoder or StubEncoder(), SETTINGS, store=store_at(data), **options))
        return opened[-1]

    yield open_one
    for follower in opened:
        follower.close()
    assert list(temporary.iterdir()) == []


def doc(document_id: str, body: bytes = REGIONS, **fields) -> DocumentWrite:
    return DocumentWrite(document_id, body, **fields)


def ask(reader: Retriever | Follower, text: str, k: int = 9, **fields) -> Evidence:
    (found,) = reader.evidence([Query(text, fields.pop("collection", "docs"), k, **fields)])
    assert isinstance(found, Evidence), found
    return found


def found_in(reader: Retriever | Follower, text: str, **fields) -> list[str]:
    return [passage.document for passage in ask(reader, text, **fields).passages]


def test_follower_finds_what_was_written_before_and_after_it_began(retriever, open_follower):
    retriever.write("docs", [doc("a"), doc("b", FRUIT)])
    follower = open_follower()
    assert ask(follower, "Madrid").passages == ask(retriever, "Madrid").passages
    retriever.write("docs", [doc("a", FRUIT, title="Other"), DocumentWrite("b", delete=True)])
    retriever.write("docs", [doc("c")])
    assert follower.catch_up()
    for mode in ("dense", "lexical", "hybrid"):
        mine, theirs = (ask(one, "yellow Madrid", mode=mode) for one in (follower, retriever))
        assert (mine.version, sorted(found_in(follower, "yellow Madrid", mode=mode))) == (
            theirs.version,
            sorted(found_in(retriever, "yellow Madrid", mode=mode)),
        )
    assert not follower.catch_up()


def test_follower_answers_at_the_version_that_it_has_until_it_catches_up(retriever, open_follower):
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    retriever.write("docs", [doc("b", FRUIT)])
    assert (ask(follower, "yellow").version, found_in(follower, "yellow")) == (1, ["a"])
    follower.catch_up()
    assert (ask(follower, "yellow").version, found_in(follower, "yellow")[0]) == (2, "b")


def test_follower_that_starts_while_documents_are_written_has_all_that_were_there_before(retriever, open_follower):
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            retriever.write("docs", [doc("same", b"saying %d" % number), doc(f"page{number}", b"page %d" % number)])
            number += 1
            written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(30)
        for _ in range(3):
            before = retriever._live["docs"].version
            follower = open_follower()
            evidence = ask(follower, "saying page", k=1000)
            assert evidence.version >= before
            pages = [passage.document for passage in evidence.passages if passage.document != "same"]
            assert sorted(pages) == sorted(f"page{number}" for number in range(evidence.version))
    finally:
        stop.set()
        writer.join()


@IN_A_FILE
def test_passage_that_was_replaced_meanwhile_is_never_shown(retriever, open_follower):
    retriever.write("docs", [doc("a"), doc("b", FRUIT)])
    follower = open_follower()
    retriever.write("docs", [DocumentWrite("a", delete=True)])
    evidence = ask(follower, "Madrid")
    assert (evidence.version, [passage.document for passage in evidence.passages]) == (2, ["b"])


@IN_A_FILE
def test_follower_answers_though_what_it_finds_is_replaced_after_every_look_at_the_log(
    retriever, open_follower, monkeypatch
):
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    step, number = follower._step, itertools.count()

    def step_and_fall_behind(connection):
        changed = step(connection)
        retriever.write("docs", [doc("a", b"saying %d" % next(number))])
        return changed

    monkeypatch.setattr(follower, "_step", step_and_fall_behind)
    retriever.write("docs", [doc("a", FRUIT)])
    evidence = ask(follower, "fruit")
    assert (evidence.version, [passage.text for passage in evidence.passages]) == (2, [FRUIT.decode().strip()])


def test_new_collections_tenants_and_documents_are_known_at_once(retriever, open_follower):
    follower = open_follower()
    with pytest.raises(UnknownCollection):
        follower.get_document("docs", "a")
    retriever.write("docs", [doc("a")], tenant="one")
    assert follower.get_document("docs", "a", tenant="one")["title"] == "Regions"
    assert found_in(follower, "Madrid", tenant="one") == ["a"]
    retriever.write("docs", [doc("b")], tenant="two")
    assert [row["documents"] for row in follower.collections(tenant="two")] == [1]
    assert found_in(follower, "Madrid", tenant="two") == ["b"]
    assert found_in(follower, "Madrid", tenant="one") == ["a"]
    retriever.write("more", [doc("c", FRUIT)])
    assert [row["id"] for row in follower.list_documents("more", source=None, after=None, limit=9)] == ["c"]
    assert follower.index_info() == retriever.index_info()


def test_dropped_collection_is_forgotten_and_one_of_the_same_name_is_another(
    open_retriever, open_follower, store_at, tmp_path
):
    retriever = open_retriever()
    retriever.write("docs", [doc("a")])
    retriever.write("docs", [doc("a", FRUIT)])
    follower = open_follower()
    retriever.close()
    drop_collection(tmp_path / "data", "docs", store_at(tmp_path / "data"))
    follower.catch_up()
    assert follower.collections() == []
    (error,) = follower.evidence([Query("Madrid", "docs", 1)])
    assert isinstance(error, UnknownCollection)
    open_retriever().write("docs", [doc("z")])
    follower.catch_up()
    assert (ask(follower, "Madrid").version, found_in(follower, "Madrid")) == (1, ["z"])


def test_log_with_a_gap_is_no_reason_to_miss_a_document(retriever, open_follower):
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    retriever.write("docs", [doc("b", FRUIT)])
    with retriever._store.writing() as connection:
        connection.execute(delete(tables.operations))
    follower.catch_up()
    assert found_in(follower, "yellow", mode="lexical") == ["b"]


def test_step_that_failed_is_made_good_by_the_next(retriever, open_follower, monkeypatch):
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    retriever.write("docs", [doc("b", FRUIT), DocumentWrite("a", delete=True)])

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("engine.retrieval.index.shelf.Shelf.put", fail)
        with pytest.raises(MemoryError):
            follower.catch_up()
    follower.catch_up()
    for mode in ("dense", "lexical", "hybrid"):
        assert found_in(follower, "yellow", mode=mode) == ["b"]


def test_fitted_weight_follows_and_goes_when_judgements_are_forgotten(retriever, open_follower):
    retriever.write("docs", [doc("a"), doc("b", FRUIT)])
    follower = open_follower()
    with retriever._store.writing() as connection:
        collection = connection.execute(tables.collections.select()).one().id
        report = {"encoder": retriever._encoder.identity.digest}
        fit = {"collection": collection, "tenant": "", "revision": 1, "fitted": 1, "alpha": 1.0, "report": report}
        connection.execute(tables.fits.insert().values(fit))

    def scores(reader: Retriever | Follower) -> list[float]:
        return [passage.score for passage in ask(reader, "Madrid yellow bananas").passages]

    default = scores(follower)
    follower.catch_up()
    retriever._live["docs"].use_alpha("", 1.0)
    assert scores(follower) == scores(retriever) != default
    assert scores(open_follower()) == scores(retriever)
    retriever.forget_judgements("docs")
    follower.catch_up()
    assert scores(follower) == default


def test_search_waits_for_a_version_that_is_stored(retriever, open_follower):
    follower = open_follower()
    follower.start()
    for i in range(5):
        (result,) = retriever.write("docs", [doc("a", b"saying %d" % i)])
        query = Query("saying", "docs", 1, min_version=result.version)
        asyncio.run(follower.wait_for(query, timeout_s=30))
        assert ask(follower, "saying", min_version=result.version).passages[0].text == f"saying {i}"


def test_version_that_no_write_has_made_is_refused_at_once(retriever, open_follower):
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    follower.start()
    query = Query("Madrid", "docs", 1, min_version=9)
    asyncio.run(follower.wait_for(query, timeout_s=30))
    (error,) = follower.evidence([query])
    assert isinstance(error, InvalidRequest) and "min_version=9 is ahead of collection 'docs'" in str(error)


def test_follower_that_does_not_come_to_a_version_in_time_names_both(retriever, open_follower):
    retriever.write("docs", [doc("a")])
    follower = open_follower()  # follows nothing: it was not started
    retriever.write("docs", [doc("b")])
    with pytest.raises(BehindStore, match=r"'docs' at version 1, min_version=2 .*Retry after 1 s"):
        asyncio.run(follower.wait_for(Query("Madrid", "docs", 1, min_version=2), timeout_s=0.02))


def test_searches_go_on_while_the_log_cannot_be_read_and_the_check_fails_after_a_minute(
    retriever, open_follower, monkeypatch, caplog
):
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    has_failed = threading.Event()

    def fail():
        has_failed.set()
        raise DataFolderError("data: cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(follower, "catch_up", fail)
        follower.start()
        assert has_failed.wait(30)
        assert found_in(follower, "Madrid") == ["a"]
        follower.check()
        patch.setattr("engine.retrieval.following._UNHEALTHY_AFTER_S", -1)
        while follower._failing_since is None:
            pass
        with pytest.raises(DataFolderError, match="operations log has not been read"):
            follower.check()
    assert "cannot be followed: data: cannot be read" in caplog.text


def test_status_says_which_versions_are_here_and_how_long_ago_the_log_was_read(retriever, open_follower):
    retriever.write("docs", [doc("a")])
    retriever.write("more", [doc("b")])
    follower = open_follower()
    retriever.write("docs", [doc("c")])
    follower._read_at -= 60
    status = follower.status()
    assert (status["versions"], retriever.status()["versions"]) == (2, 3)
    assert status["read_s_ago"] >= 60
    follower.catch_up()
    status = follower.status()
    assert status["versions"] == 3 and status["read_s_ago"] < 60


@IN_A_FILE
def test_follower_takes_no_lock_and_writes_nothing_into_the_data_folder(open_retriever, open_follower, tmp_path):
    retriever = open_retriever()
    retriever.write("docs", [doc("a")])
    follower = open_follower()
    retriever.close()
    before = {file for file in (tmp_path / "data").rglob("*") if "sqlite" not in file.name}
    open_retriever().write("docs", [doc("b")])
    follower.catch_up()
    assert sorted(found_in(follower, "Madrid")) == ["a", "b"]
    assert set((tmp_path / "data" / "indexes").iterdir()) <= before
    with pytest.raises(DataFolderError), follower._store.writing() as connection:
        connection.execute(delete(tables.documents))


def test_folder_without_a_knowledge_base_or_whose_encoder_cannot_be_had_is_refused(open_retriever, open_follower):
    with pytest.raises(DataFolderError, match="holds no knowledge base yet"):
        open_follower()
    open_retriever(StubEncoder("first"), FIRST).write("docs", [doc("a")])
    with pytest.raises(
        ModelSourceError, match=r"was embedded by first .*, retriever.model is words .* cannot be loaded"
    ):
        open_follower()


def test_follower_waits_for_the_store_to_be_made(open_retriever, open_follower, tmp_path, store_at):
    store_at(tmp_path / "data")  # both threads ask for it, and it is made once only where nobody else is at it
    maker = threading.Timer(0.01, lambda: open_retriever().write("docs", [doc("a")]))
    maker.start()
    follower = open_follower(patience_s=30)
    maker.join()
    follower.catch_up()
    assert found_in(follower, "Madrid") == ["a"]


def test_closed_follower_says_that_it_is_shutting_down(retriever, open_follower):
    follower = open_follower()
    follower.start()
    follower.close()
    with pytest.raises(ComponentUnavailable, match="shutting down"):
        follower.evidence([Query("x", "docs", 1)])
    assert follower.status()["ready"] is False


def test_folders_that_killed_followers_left_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("engine.retrieval.index.own_folder._MIN_AGE_S", -1)
    alive, killed = OwnFolder("switchyard-follower-"), OwnFolder("switchyard-follower-")
    killed._lock.release()
    other = OwnFolder("switchyard-follower-")
    assert set(tmp_path.iterdir()) == {alive.path, other.path}
    alive.remove()
    other.remove()
    assert list(tmp_path.iterdir()) == []


def test_searches_of_a_follower_see_whole_writes_only(retriever, open_follower):
    """As of the writing retriever: two documents that always say the same."""
    retriever.write("docs", [doc("a", b"saying 0"), doc("b", b"saying 0")])
    follower = open_follower()
    follower.start()
    stop, torn = threading.Event(), []

    def search():
        while not stop.is_set():
            found = ask(follower, "saying")
            sayings = [passage.text for passage in found.passages]
            if sayings != [f"saying {found.version - 1}"] * 2:
                torn.append((found.version, sayings))

    searchers = [threading.Thread(target=search) for _ in range(2)]
    for searcher in searchers:
        searcher.start()
    for i in range(1, 30):
        retriever.write("docs", [doc("a", b"saying %d" % i), doc("b", b"saying %d" % i)])
    stop.set()
    for searcher in searchers:
        searcher.join()
    assert torn == []
