"""Durable writes of a retriever: applied later, by the same path, and in the order of all writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import InvalidRequest, Overloaded, UnknownCollection, UnknownDocument, UnknownJob
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Evidence, Query

WAIT_S = 60


class GatedEncoder(StubEncoder):
    """Embeds in the background once the gate is open; `reached` is set when it stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reached = threading.Event()
        self.embedded: list[str] = []

    def encode(self, texts, *, is_query=False):
        if threading.current_thread().name == "backlog":
            self.reached.set()
            assert self.gate.wait(WAIT_S)
        if not is_query:
            self.embedded += texts
        return super().encode(texts, is_query=is_query)


@pytest.fixture
def gated() -> GatedEncoder:
    return GatedEncoder()


@pytest.fixture
def held(open_retriever, gated) -> Retriever:
    """A retriever whose background worker stops before it embeds."""
    yield open_retriever(gated)
    gated.gate.set()


def doc(id: str, text: str, **fields: Any) -> DocumentWrite:
    return DocumentWrite(id, text.encode(), **fields)


def enqueue(retriever: Retriever, *items: DocumentWrite, **options: Any) -> str:
    results = retriever.enqueue("docs", items, **options)
    assert {result.status for result in results} == {"accepted"}
    (job,) = {result.job for result in results}
    return job


def wait(
    retriever: Retriever, job: str, until: Callable[[dict], bool] = lambda job: bool(job["finished_at"]), **options
):
    pause = threading.Event()
    for _ in range(WAIT_S * 200):
        found = retriever.job(job, **options)
        if until(found):
            return found
        pause.wait(0.005)
    raise AssertionError(found)


def texts(retriever: Retriever, tenant: str = "") -> dict[str, str]:
    """Documents with their text, which both legs of a search agree with."""
    page = retriever.list_documents("docs", source=None, after=None, limit=1000, tenant=tenant)
    found = {row["id"]: retriever.get_document("docs", row["id"], tenant=tenant)["text"] for row in page}
    for mode in ("dense", "lexical"):
        (evidence,) = retriever.evidence([Query("word", "docs", 1000, mode=mode, tenant=tenant)])
        assert isinstance(evidence, Evidence)
        assert {passage.document: passage.text for passage in evidence.passages} == found
        assert evidence.version == retriever.collection("docs", tenant=tenant)["version"]
    return found


def test_accepted_write_is_answered_at_once_and_found_when_its_job_is_done(held, gated):
    (result,) = held.enqueue("docs", [doc("a", "word one", metadata={"n": 1})])
    assert (result.status, result.version, result.chunks, result.error) == ("accepted", 0, 0, None)
    with pytest.raises(UnknownCollection):
        held.collection("docs")
    waiting = wait(held, result.job, lambda job: job["state"] == "running")
    assert (waiting["total"], waiting["done"], waiting["progress"], waiting["eta_s"]) == (1, 0, 0.0, None)
    gated.gate.set()
    done = wait(held, result.job)
    assert (done["state"], done["done"], done["failed"], done["progress"]) == ("done", 1, 0, 1.0)
    assert (done["kind"], done["collection"], done["version"], done["errors"]) == ("ingest", "docs", 1, [])
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert texts(held) == {"a": "word one"}
    assert held.get_document("docs", "a")["metadata"] == {"n": 1}
    assert held.enqueue("docs", [doc("b", "word two")])[0].version == 1


def test_job_is_not_done_before_searches_see_what_it_wrote(retriever, monkeypatch):
    in_store, pause = threading.Event(), threading.Event()
    commit = LiveCollection.commit

    def commit_then_dawdle(live, *arguments, **named):
        commit(live, *arguments, **named)
        in_store.set()
        pause.wait(0.05)

    monkeypatch.setattr(LiveCollection, "commit", commit_then_dawdle)
    job = enqueue(retriever, doc("a", "word a"))
    assert in_store.wait(WAIT_S)
    assert retriever.job(job)["state"] == "done"
    assert texts(retriever) == {"a": "word a"}


def test_what_is_plainly_wrong_is_refused_at_once_and_the_rest_is_accepted(retriever):
    results = retriever.enqueue(
        "docs",
        [
            doc("", "x"),
            doc("type", "x", content_type="image/png"),
            doc("title", "x", title="t" * 1001),
            doc("nan", "x", metadata={"x": float("nan")}),
            doc("twice", "word old"),
            doc("twice", "word new"),
            DocumentWrite("gone", delete=True),
        ],
    )
    assert [result.status for result in results] == ["failed"] * 5 + ["accepted"] * 2
    assert "image/png" in str(results[1].error) and "comes again later in this batch" in str(results[4].error)
    done = wait(retriever, results[-1].job)
    assert (done["total"], done["done"], done["failed"]) == (2, 2, 0)
    assert texts(retriever) == {"twice": "word new"}


def test_batch_in_which_nothing_is_sound_makes_no_job(retriever):
    (result,) = retriever.enqueue("docs", [doc("", "x")])
    assert (result.status, result.job) == ("failed", None)
    assert retriever.jobs(limit=10) == []
    with pytest.raises(InvalidRequest, match="is no valid name"):
        retriever.enqueue("no/slash", [doc("a", "x")])


def test_write_that_turns_out_bad_fails_in_its_job_and_stops_no_other(retriever):
    job = enqueue(retriever, doc("a", "word a"), DocumentWrite("bad", b"\xff"), doc("b", "word b"))
    done = wait(retriever, job)
    assert (done["state"], done["done"], done["failed"]) == ("done", 2, 1)
    assert done["errors"][0]["item"] == "bad" and "UTF-8" in done["errors"][0]["error"]
    assert texts(retriever) == {"a": "word a", "b": "word b"}


def test_searchable_write_replaces_the_one_that_waits_before_and_while_it_is_embedded(held, gated):
    job = enqueue(held, doc("a", "word old"), doc("b", "word kept"))
    assert gated.reached.wait(WAIT_S)
    later = enqueue(held, doc("c", "word old"))
    results = held.write("docs", [doc("a", "word new"), doc("c", "word new")])
    assert [(result.status, result.version) for result in results] == [("created", 1)] * 2
    assert held.job(job)["done"] == 1 and held.job(later)["state"] == "done"
    gated.gate.set()
    assert wait(held, job)["done"] == 2
    assert texts(held) == {"a": "word new", "b": "word kept", "c": "word new"}


def test_searchable_delete_wins_over_an_earlier_durable_write(held, gated):
    held.write("docs", [doc("a", "word first"), doc("z", "word z")])
    job = enqueue(held, doc("a", "word second"))
    assert gated.reached.wait(WAIT_S)
    assert held.write("docs", [DocumentWrite("a", delete=True)])[0].status == "deleted"
    gated.gate.set()
    assert wait(held, job)["done"] == 1
    with pytest.raises(UnknownDocument):
        held.get_document("docs", "a")


def test_searchable_write_that_changes_nothing_still_wins_over_an_earlier_durable_write(held, gated):
    held.write("docs", [doc("a", "word same")])
    job = enqueue(held, doc("a", "word other"))
    assert held.write("docs", [doc("a", "word same")])[0].status == "unchanged"
    gated.gate.set()
    assert wait(held, job)["done"] == 1
    assert texts(held) == {"a": "word same"}


def test_searchable_write_found_unchanged_before_the_worker_changed_it_is_applied_after_all(open_retriever):
    """The write looks at what is stored, then the worker applies an older write, then the write commits."""
    retriever = open_retriever()
    retriever.write("docs", [doc("a", "word same")])
    content_hashes = retriever._store.content_hashes
    looked: list[str] = []

    def look_then_let_the_worker_pass(*arguments):
        found = content_hashes(*arguments)
        if threading.current_thread().name != "backlog" and not looked:
            looked.append(enqueue(retriever, doc("a", "word other")))
            # The worker steps aside for this very write, but not forever.
            wait(retriever, looked[0])
        return found

    retriever._store.content_hashes = look_then_let_the_worker_pass
    (result,) = retriever.write("docs", [doc("a", "word same")])
    assert (result.status, result.version) == ("updated", 3)
    assert texts(retriever) == {"a": "word same"}


def test_searchable_write_that_fails_leaves_the_earlier_durable_write_in_place(held, gated):
    job = enqueue(held, doc("a", "word old"))
    assert held.write("docs", [DocumentWrite("a", b"\xff")])[0].status == "failed"
    gated.gate.set()
    assert wait(held, job)["done"] == 1
    assert texts(held) == {"a": "word old"}


def test_later_durable_write_wins_over_a_searchable_and_over_a_durable_one(held, gated):
    first = enqueue(held, doc("a", "word 1"))
    assert gated.reached.wait(WAIT_S)
    held.write("docs", [doc("a", "word 2")])
    second = enqueue(held, doc("a", "word 3"))
    third = enqueue(held, doc("a", "word 4"))
    assert held.job(second)["state"] == "done"
    gated.gate.set()
    wait(held, first)
    wait(held, third)
    assert texts(held) == {"a": "word 4"}
    assert not any("word 3" in text for text in gated.embedded)


def test_searchable_write_does_not_wait_for_the_batch_that_is_embedded(held, gated):
    job = enqueue(held, *(doc(f"old/{number}", f"word {number}") for number in range(40)))
    assert gated.reached.wait(WAIT_S)
    assert held.write("docs", [doc("new", "word new")])[0].status == "created"
    assert texts(held) == {"new": "word new"}
    assert held.job(job)["done"] == 0
    gated.gate.set()
    assert wait(held, job)["done"] == 40


def test_cancelled_job_applies_nothing_more_not_even_what_is_being_embedded(held, gated):
    held.write("docs", [doc("b", "word b")])
    job = enqueue(held, doc("a", "word a"))
    assert gated.reached.wait(WAIT_S)
    cancelled = held.cancel_job(job)
    assert (cancelled["state"], cancelled["done"], cancelled["total"]) == ("cancelled", 0, 1)
    after = enqueue(held, doc("c", "word c"))
    gated.gate.set()
    wait(held, after)
    assert texts(held) == {"b": "word b", "c": "word c"}
    assert held.job(job)["state"] == "cancelled"


def test_tenants_see_and_cancel_their_own_jobs_only_and_share_no_document(retriever):
    mine = enqueue(retriever, doc("a", "word mine"))
    theirs = enqueue(retriever, doc("a", "word theirs"), tenant="acme")
    for refused in (retriever.job, retriever.cancel_job):
        with pytest.raises(UnknownJob):
            refused(mine, tenant="acme")
        with pytest.raises(UnknownJob):
            refused(theirs)
    with pytest.raises(UnknownJob):
        retriever.enqueue("docs", [doc("b", "word b")], tenant="acme", job=mine)
    assert [job["id"] for job in retriever.jobs(limit=10, tenant="acme")] == [theirs]
    wait(retriever, mine)
    wait(retriever, theirs, tenant="acme")
    assert (texts(retriever), texts(retriever, "acme")) == ({"a": "word mine"}, {"a": "word theirs"})


def test_full_inbox_refuses_durable_writes_and_takes_searchable_ones(open_retriever, gated):
    retriever = open_retriever(gated, SETTINGS.model_copy(update={"max_pending_writes": 3}))
    enqueue(retriever, *(doc(id, f"word {id}") for id in "abc"))
    with pytest.raises(Overloaded, match="inbox of writes is full") as full:
        retriever.enqueue("docs", [doc("d", "word d")])
    assert full.value.retry_after_s
    retriever.write("docs", [doc("a", "word newer")])
    job = enqueue(retriever, doc("d", "word d"))
    gated.gate.set()
    wait(retriever, job)
    assert set(texts(retriever)) == set("abcd")


def test_what_waits_when_the_retriever_closes_is_applied_after_the_next_start(open_retriever, gated):
    retriever = open_retriever(gated)
    job = enqueue(retriever, doc("a", "word a"))
    assert gated.reached.wait(WAIT_S)
    closing = threading.Thread(target=retriever.close)
    closing.start()
    while not retriever._is_closed:
        threading.Event().wait(0.001)
    gated.gate.set()
    closing.join()
    retriever = open_retriever()
    assert wait(retriever, job)["done"] == 1
    assert texts(retriever) == {"a": "word a"}


@pytest.mark.parametrize("store_at", ["sqlite"], indirect=True)
def test_full_disk_makes_the_job_wait_say_so_and_go_on(open_retriever, gated):
    retriever = open_retriever(gated)
    retriever.write("docs", [doc("z", "word z")])
    retriever._backlog._first_delay_s = 0.01
    job = enqueue(retriever, doc("a", "word a " * 3000))
    is_full = [True]
    engine = retriever._store._engine
    with retriever._store.reading() as connection:
        size = connection.exec_driver_sql("PRAGMA page_count").scalar()

    def limit_size(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count = {size + 2 if is_full[0] else 1_000_000}")

    event.listen(engine, "begin", limit_size)
    gated.gate.set()
    waiting = wait(retriever, job, lambda job: job["waiting_for"] is not None)
    assert (waiting["state"], waiting["done"]) == ("running", 0) and "no space left" in waiting["waiting_for"]
    assert [row["id"] for row in retriever.list_documents("docs", source=None, after=None, limit=9)] == ["z"]
    is_full[0] = False
    done = wait(retriever, job)
    assert (done["state"], done["done"], done["failed"], done["waiting_for"]) == ("done", 1, 0, None)
    assert retriever.get_document("docs", "a")["version"] == 2


def test_writers_of_both_kinds_at_once_lose_nothing_and_the_last_one_of_each_document_wins(retriever):
    """Each thread writes documents of its own, now durable, now searchable; its last write must be what is there."""
    jobs: list[str] = []

    def work(name: str) -> None:
        for number in range(12):
            item = doc(f"{name}/{number % 3}", f"word {name} {number}")
            if (number + len(name)) % 2:
                retriever.write("docs", [item])
            else:
                jobs.append(enqueue(retriever, item))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("x", "yy", "z", "ww")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in jobs:
        done = wait(retriever, job)
        assert (done["state"], done["done"], done["failed"]) == ("done", 1, 0)
    names = ("x", "yy", "z", "ww")
    assert texts(retriever) == {f"{name}/{i}": f"word {name} {9 + i}" for name in names for i in range(3)}
