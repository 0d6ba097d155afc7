"""The store on PostgreSQL: one writer, clear errors, and every write stored once, whatever becomes of connections."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import ConfigError, DataFolderError, StorageFull, StoreUnavailable
from engine.retrieval.service import Retriever
from engine.retrieval.store import database, tables
from engine.retrieval.store import postgres as postgres_module
from engine.retrieval.store.address import chosen_store, store_url, without_secrets
from engine.retrieval.store.feedback import FeedbackStore
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, Evidence, Query
from loadtest.postgres_server import PostgresServer

NOWHERE = "postgresql+psycopg://somebody:hidden@127.0.0.1:9/none"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_schema()


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    with contextlib.ExitStack() as opened:
        folders = iter(range(100))
        yield lambda url: opened.enter_context(contextlib.closing(Store(tmp_path / f"store{next(folders)}", url=url)))


@pytest.fixture
def open_on(tmp_path: Path) -> Iterator[Callable[..., Retriever]]:
    with contextlib.ExitStack() as opened:

        def open_one(url: str, **settings) -> Retriever:
            used = SETTINGS.model_copy(update=settings)
            retriever = Retriever(tmp_path / "data", StubEncoder(), used, store=url)
            return opened.enter_context(contextlib.closing(retriever))

        yield open_one


def doc(id: str, text: str = "a volume of the region") -> DocumentWrite:
    return DocumentWrite(id, text.encode())


def found(retriever: Retriever, question: str = "volume region", **fields) -> set[str]:
    (evidence,) = retriever.evidence([Query(question, "docs", 100, **fields)])
    assert isinstance(evidence, Evidence), evidence
    return {passage.document for passage in evidence.passages}


def log_of(retriever: Retriever) -> list[tuple[int, str, str]]:
    o = tables.operations
    with retriever._store.reading() as connection:
        return [tuple(row) for row in connection.execute(select(o.c.version, o.c.op, o.c.document).order_by(o.c.pk))]


def lose_commits(store: Store, *, is_stored: bool, times: int = 1) -> None:
    """Let the connection break at the next commits, before or after the server has done them."""
    import psycopg

    dialect = store._database._session.dialect
    commit, left = dialect.do_commit, [times]

    def do_commit(connection) -> None:
        if left[0] == 0:
            commit(connection)
            return
        left[0] -= 1
        if is_stored:
            connection.commit()
        connection.driver_connection.close()
        raise psycopg.OperationalError("the connection is lost")

    dialect.do_commit = do_commit


def test_commit_whose_answer_was_lost_counts_once(url, open_on):
    retriever = open_on(url)
    retriever.write("docs", [doc("a")])
    lose_commits(retriever._store, is_stored=True)
    (result,) = retriever.write("docs", [doc("b")])
    assert (result.status, result.version) == ("created", 2)
    assert found(retriever) == found(retriever, mode="lexical") == {"a", "b"}
    assert log_of(retriever) == [(1, "put", "a"), (2, "put", "b")]


def test_commit_that_never_arrived_is_done_again(url, open_on):
    retriever = open_on(url)
    retriever.write("docs", [doc("a")])
    lose_commits(retriever._store, is_stored=False)
    (result,) = retriever.write("docs", [doc("b"), doc("a", "changed")])[:1]
    assert (result.status, result.version) == ("created", 2)
    assert found(retriever, "volume changed") == found(retriever, "volume changed", mode="lexical") == {"a", "b"}
    assert [version for version, *_ in log_of(retriever)] == [1, 2, 2]


def test_first_commit_of_a_collection_may_be_lost_as_well(url, open_on):
    retriever = open_on(url)
    lose_commits(retriever._store, is_stored=True)
    assert retriever.write("docs", [doc("a")])[0].version == 1
    assert found(retriever) == {"a"}


def test_small_writes_say_whether_a_lost_commit_was_stored(url, open_store):
    store = open_store(url)
    feedback = FeedbackStore(store)
    lose_commits(store, is_stored=False)
    with pytest.raises(StoreUnavailable, match="of which nothing was stored") as caught:
        feedback.put("", "one", {})
    assert caught.value.is_settled and feedback.rows("", 0, 10) == []
    lose_commits(store, is_stored=True)
    assert feedback.put("", "one", {}) == "created"
    assert len(feedback.rows("", 0, 10)) == 1


def test_write_of_unknown_outcome_is_said_to_be_so_and_shows_once_the_database_is_back(crashing, open_on, monkeypatch):
    retriever = open_on(crashing.url)
    retriever.write("docs", [doc("a")])
    monkeypatch.setattr(database, "WRITE_WAIT_S", 0.5)
    commit = retriever._store._database._session.dialect.do_commit

    def crash_behind(connection) -> None:
        commit(connection)
        crashing.crash()
        connection.execute("SELECT 1")

    monkeypatch.setattr(retriever._store._database._session.dialect, "do_commit", crash_behind)
    with pytest.raises(StoreUnavailable, match="is not known yet; it may be sent again") as caught:
        retriever.write("docs", [doc("b")])
    assert not caught.value.is_settled
    assert found(retriever) == {"a"}
    monkeypatch.undo()
    crashing.start()
    give_up_at, never = time.monotonic() + 60, threading.Event()
    while found(retriever) != {"a", "b"}:
        assert time.monotonic() < give_up_at, "nobody finds out"
        never.wait(0.05)
    assert found(retriever, mode="lexical") == {"a", "b"}
    (again,) = retriever.write("docs", [doc("b")])
    assert (again.status, again.version) == ("unchanged", 2)
    assert log_of(retriever) == [(1, "put", "a"), (2, "put", "b")]


def test_searches_go_on_and_the_rest_fails_clearly_while_the_database_is_away(crashing, open_on, monkeypatch):
    retriever = open_on(crashing.url)
    retriever.write("docs", [doc(f"d{i}", f"volume number {i}") for i in range(20)])
    retriever.close()
    retriever = open_on(crashing.url)
    retriever.write("docs", [doc("new")])
    monkeypatch.setattr(database, "WRITE_WAIT_S", 0.3)
    crashing.crash()
    assert len(found(retriever)) == 21
    assert "d3" in found(retriever, "number 3", mode="lexical")
    assert found(retriever, "volume", wants_clues=True) == found(retriever, "volume")
    named = (
        rf"store postgresql\+psycopg://switchyard@127.0.0.1:{crashing.port}/postgres is unavailable .*Retry after 5 s"
    )
    for call in (
        lambda: retriever.write("docs", [doc("more")]),
        lambda: retriever.enqueue("docs", [doc("more")]),
        lambda: retriever.get_document("docs", "new"),
        lambda: retriever.keep_feedback("one", {}),
    ):
        with pytest.raises(StoreUnavailable, match=named) as caught:
            call()
        assert caught.value.is_settled and crashing.password not in str(caught.value)
    crashing.start()
    monkeypatch.undo()
    assert retriever.write("docs", [doc("more")])[0].status == "created"
    assert retriever.get_document("docs", "more")["id"] == "more"


def test_search_that_finds_what_has_no_room_in_memory_fails_alone(crashing, open_on):
    retriever = open_on(crashing.url, passage_memory_bytes=1)
    retriever.write("docs", [doc("a")])
    crashing.crash()
    answers = retriever.evidence([Query("volume", "docs", 3), Query("none", "docs", 3, filter={"$id": "absent"})])
    assert isinstance(answers[0], StoreUnavailable) and "the text of a passage cannot be read" in str(answers[0])
    assert isinstance(answers[1], Evidence) and answers[1].passages == ()


def test_frozen_server_keeps_searches_for_the_longest_read_and_not_for_ever(crashing, open_on, monkeypatch):
    monkeypatch.setattr(postgres_module, "READ_TIMEOUT_S", 1)
    retriever = open_on(crashing.url)
    retriever.write("docs", [doc("a")])
    retriever.get_document("docs", "a")
    crashing.freeze()
    assert found(retriever, wants_clues=True) == {"a"}
    with pytest.raises(StoreUnavailable):
        retriever.get_document("docs", "a")
    crashing.thaw()
    retriever.write("docs", [doc("b")])
    assert retriever.get_document("docs", "b")["id"] == "b"


def test_reads_go_on_when_connections_are_cut(url, postgres, open_on):
    retriever = open_on(url)
    retriever.write("docs", [doc("a")])
    assert retriever.get_document("docs", "a")["id"] == "a"
    cut_all(postgres)
    assert retriever.get_document("docs", "a")["id"] == "a"
    cut_all(postgres)
    assert retriever.write("docs", [doc("b")])[0].version == 2


def cut_all(server: PostgresServer) -> None:
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'")


def test_second_server_is_refused_while_the_first_one_writes(url, open_store, monkeypatch):
    monkeypatch.setattr(postgres_module, "LOCK_WAIT_S", 0.3)
    first = open_store(url)
    with pytest.raises(DataFolderError, match=r"switchyard@127.*: another server uses it\. Stop that one"):
        open_store(url)
    first.close()
    open_store(url)


def test_server_that_was_replaced_writes_nothing_any_more(url, postgres, open_store):
    old = open_store(url)
    FeedbackStore(old).put("", "one", {})
    cut_all(postgres)  # as where a network splits: the lock is free
    new = open_store(url)
    FeedbackStore(new).put("", "two", {})
    for is_still_there in (True, False):
        if not is_still_there:
            new.close()
        with pytest.raises(DataFolderError, match="another server has taken over, so this one writes nothing any more"):
            FeedbackStore(old).put("", "three", {})
    assert [number for number, _ in FeedbackStore(open_store(url)).rows("", 0, 10)] == [1, 2]


def test_write_under_way_when_another_server_takes_over_is_lost(url, postgres, open_store):
    old = open_store(url)
    with pytest.raises(StoreUnavailable), old.writing() as connection:
        connection.execute(tables.feedback.insert().values(tenant="", id="one", content={}))
        cut_all(postgres)
        new = open_store(url)
        connection.execute(tables.feedback.insert().values(tenant="", id="two", content={}))
    assert FeedbackStore(new).rows("", 0, 10) == []


def test_commits_are_durable_whatever_the_server_is_set_to(url, postgres, open_store):
    assert postgres.execute("SHOW synchronous_commit") == [("off",)]
    with open_store(url).writing() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"


def test_full_disk_of_the_server_keeps_nothing_of_the_write(url, open_store):
    store = open_store(url)
    with pytest.raises(StorageFull, match="no space left for postgresql"), store.writing() as connection:
        connection.execute(tables.feedback.insert().values(tenant="", id="one", content={}))
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$"))
    assert FeedbackStore(store).rows("", 0, 10) == []


def test_statement_that_takes_too_long_is_ended(url, open_store, monkeypatch):
    monkeypatch.setattr(postgres_module, "READ_TIMEOUT_S", 1)
    with pytest.raises(StoreUnavailable, match="statement timeout"), open_store(url)._database.connect() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))


def test_database_of_a_later_version_is_refused(url, open_store):
    store = open_store(url)
    with store.writing() as connection:
        connection.execute(tables.meta.update().values(schema_version=99))
    store.close()
    with pytest.raises(DataFolderError, match="has schema version 99, this program reads"):
        open_store(url)


def test_texts_that_postgresql_has_no_place_for_are_kept(url, open_on):
    retriever = open_on(url)
    name = "文" * 512
    retriever.write("docs", [DocumentWrite(name, "😀 volume".encode(), "text/plain; x=" + "y" * 300, "T\0")])
    assert retriever.get_document("docs", name)["title"] == "T\ufffd"
    (evidence,) = retriever.evidence([Query("volume", "docs", 1)])
    retriever.close()
    (after,) = open_on(url).evidence([Query("volume", "docs", 1)])
    assert after.passages[0].text == evidence.passages[0].text == "😀 volume"


def test_wrong_password_is_named_at_once_and_not_shown(postgres, open_store, caplog):
    wrong = postgres.url.replace(postgres.password, "wrong-secret")
    with pytest.raises(DataFolderError, match="password authentication failed") as caught:
        open_store(wrong)
    shown = str(caught.value) + repr(caught.value.__cause__) + caplog.text
    assert "wrong-secret" not in shown
    with pytest.raises(DataFolderError, match='database "none" does not exist'):
        open_store(postgres.url.replace("/postgres", "/none"))


def test_server_that_is_not_there_is_named_without_the_password(open_store, monkeypatch, tmp_path):
    monkeypatch.setattr(postgres_module, "LOCK_WAIT_S", 0.1)
    with pytest.raises(StoreUnavailable, match=r"somebody@127\.0\.0\.1:9/none is unavailable") as caught:
        open_store(NOWHERE)
    assert "hidden" not in str(caught.value)
    # The folder is free again.
    Store(tmp_path / "store0").close()


def test_missing_driver_names_the_extra(open_store, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[postgres\]'"):
        open_store(NOWHERE)


@pytest.mark.parametrize(
    "bad", ["", "postgres", "mysql://a:secret@b/c", "sqlite:///secret", "postgresql+psycopg2://u:secret@h/db"]
)
def test_other_databases_are_refused_by_name_and_without_the_password(bad):
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://USER@HOST:5432/DATABASE") as caught:
        store_url(bad)
    assert ":secret" not in str(caught.value)


def test_environment_names_the_store_before_the_configuration_does(monkeypatch):
    monkeypatch.delenv("SWITCHYARD_STORE", raising=False)
    assert chosen_store(None) is None
    assert chosen_store("postgresql://a/b") == "postgresql://a/b"
    monkeypatch.setenv("SWITCHYARD_STORE", NOWHERE)
    assert chosen_store("postgresql://a/b") == NOWHERE
    shown = without_secrets(store_url("postgresql://u:hidden@h/db?sslpassword=hidden"))
    assert shown == "postgresql+psycopg://u@h/db"


# What led from a database of version 5 to this one, backwards.
TO_VERSION_5 = (
    """ALTER TABLE generations DROP COLUMN model, DROP COLUMN digest, DROP COLUMN created_at, DROP COLUMN task,
        DROP COLUMN job, DROP COLUMN report, DROP COLUMN is_dropped""",
    "ALTER TABLE documents DROP COLUMN outline",
    "DROP INDEX chunks_by_document",
    "CREATE INDEX ix_chunks_document_pk ON chunks (document_pk)",
    "UPDATE meta SET schema_version = 5",
)


def schema(store: Store) -> tuple[list, list]:
    columns = """SELECT table_name, column_name, udt_name, is_nullable, column_default, collation_name
        FROM information_schema.columns WHERE table_schema = current_schema() AND column_default IS NULL
        ORDER BY 1, 2"""
    indexes = """SELECT tablename, indexname, replace(indexdef, schemaname, '') FROM pg_indexes
        WHERE schemaname = current_schema() ORDER BY 1, 2"""
    with store.reading() as connection:
        return [[*map(tuple, connection.exec_driver_sql(query))] for query in (columns, indexes)]


def test_database_of_version_5_is_migrated_and_reads_as_before(url, open_on, open_store):
    retriever = open_on(url)
    retriever.write("docs", [doc("a"), doc("b")])
    retriever.close()
    store = open_store(url)
    new = schema(store)
    with store.writing() as connection:
        for statement in TO_VERSION_5:
            connection.exec_driver_sql(statement)
    store.close()
    store = open_store(url)
    assert schema(store) == new
    store.close()
    retriever = open_on(url)
    assert found(retriever) == {"a", "b"}
    (row,) = retriever.generations.list("docs")
    assert (row["state"], row["encoder"], row["model"]) == ("current", "words", SETTINGS.model)
