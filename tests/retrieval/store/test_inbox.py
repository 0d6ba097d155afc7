"""The inbox: durable writes wait in order, at most one per document, and their jobs count each of them once."""

from __future__ import annotations

import pytest

from engine.errors import InvalidRequest, Overloaded, RequestError, UnknownJob
from engine.retrieval.store.inbox import Inbox, discard, finish, still_waiting, supersede
from engine.retrieval.store.jobs import Job, Jobs
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, WriteResult

MIB = 1 << 20


@pytest.fixture
def store(tmp_path, store_at):
    store = Store(tmp_path, url=store_at(tmp_path))
    yield store
    store.close()


@pytest.fixture
def inbox(store) -> Inbox:
    return Inbox(store, max_waiting=8)


@pytest.fixture
def jobs(store) -> Jobs:
    return Jobs(store)


def put(inbox: Inbox, *ids: str, collection: str = "docs", tenant: str = "", **options) -> str:
    return inbox.put(collection, tenant, [DocumentWrite(id, id.encode()) for id in ids], **options)


def ids(inbox: Inbox, max_items: int = 32, max_bytes: int = MIB) -> list[str]:
    batch = inbox.next_batch(max_items, max_bytes)
    return [] if batch is None else [write.item.id for write in batch.writes]


def numbers(jobs: Jobs, job_id: str, tenant: str = "") -> tuple[str, int | None, int, int]:
    job = jobs.get(job_id, tenant=tenant)
    assert isinstance(job, Job)
    return job.state, job.total, job.done, job.failed


def result(id: str, version: int = 1, error: RequestError | None = None) -> WriteResult:
    return WriteResult(id, "failed" if error else "created", version, error=error)


def test_writes_come_back_whole_and_in_order_also_after_a_restart(tmp_path, store_at):
    items = [
        DocumentWrite("b", b"\x00\xff", "application/pdf", "Größe", {"a": [1, None, {"b": 0.5}]}),
        DocumentWrite("a", delete=True),
    ]
    store = Store(tmp_path, url=store_at(tmp_path))
    job = Inbox(store, 8).put("docs", "acme", items)
    store.close()
    store = Store(tmp_path, url=store_at(tmp_path))
    batch = Inbox(store, 8).next_batch(32, MIB)
    assert (batch.collection, batch.tenant) == ("docs", "acme")
    assert [write.item for write in batch.writes] == items
    assert {write.job for write in batch.writes} == {job}
    assert Jobs(store).get(job, tenant="acme").state == "running"
    store.close()


def test_batch_is_bounded_by_items_and_bytes_and_holds_one_write_at_least(inbox):
    put(inbox, "x" * 300, "y" * 300, "z" * 300)
    assert ids(inbox, max_items=2) == ["x" * 300, "y" * 300]
    assert ids(inbox, max_bytes=600) == ["x" * 300, "y" * 300]
    assert ids(inbox, max_bytes=10) == ["x" * 300]


def test_batch_is_of_the_collection_and_tenant_that_wait_longest(inbox):
    put(inbox, "a", tenant="acme")
    put(inbox, "b")
    put(inbox, "c", tenant="acme")
    put(inbox, "d", collection="more", tenant="acme")
    assert ids(inbox) == ["a", "c"]


def test_later_write_of_a_document_takes_the_place_of_the_one_that_waits(inbox, jobs):
    first = put(inbox, "a", "b")
    second = inbox.put("docs", "", [DocumentWrite("a", b"newer")])
    batch = inbox.next_batch(32, MIB)
    assert [(write.item.id, write.item.body) for write in batch.writes] == [("b", b"b"), ("a", b"newer")]
    assert numbers(jobs, first) == ("running", 2, 1, 0)
    assert numbers(jobs, second) == ("running", 1, 0, 0)
    third = put(inbox, "a", "b")
    assert numbers(jobs, first) == ("done", 2, 2, 0) and numbers(jobs, second) == ("done", 1, 1, 0)
    assert numbers(jobs, third) == ("queued", 2, 0, 0)


def test_same_id_of_another_tenant_or_collection_is_another_document(inbox):
    put(inbox, "a")
    put(inbox, "a", tenant="acme")
    put(inbox, "a", collection="more")
    with inbox._store.writing() as connection:
        supersede(connection, "docs", "", ["a"])
    assert not inbox.is_empty() and inbox.next_batch(32, MIB).tenant == "acme"


def test_job_ends_with_its_last_write_and_says_version_and_errors(inbox, store, jobs):
    job = put(inbox, "a", "b", "c")
    writes = inbox.next_batch(32, MIB).writes
    with store.writing() as connection:
        error = InvalidRequest("is not UTF-8 text")
        finish(connection, writes, {"a": result("a", 5), "b": result("b", 5, error)})
    assert numbers(jobs, job) == ("running", 3, 1, 1)
    assert ids(inbox) == ["c"]
    with store.writing() as connection:
        finish(connection, writes[2:], {"c": result("c", 6)})
    done = jobs.get(job)
    assert (done.state, done.done, done.failed, done.version, done.progress) == ("done", 2, 1, 6, 1.0)
    assert done.errors == [{"item": "b", "error": "is not UTF-8 text"}]
    assert inbox.next_batch(32, MIB) is None and inbox.is_empty()


def test_what_was_replaced_or_cancelled_no_longer_waits(inbox, store):
    put(inbox, "a", "b")
    cancelled = put(inbox, "c")
    writes = inbox.next_batch(32, MIB).writes
    put(inbox, "a")
    inbox.cancel(cancelled, "")
    with store.reading() as connection:
        assert still_waiting(connection, writes) == {"b"}


def test_cancelled_job_keeps_what_it_counted(inbox, store, jobs):
    job = put(inbox, "a", "b", "c")
    writes = inbox.next_batch(1, MIB).writes
    with store.writing() as connection:
        finish(connection, writes, {"a": result("a")})
    inbox.cancel(job, "")
    assert numbers(jobs, job) == ("cancelled", 3, 1, 0)
    assert inbox.is_empty()
    inbox.cancel(job, "")
    assert numbers(jobs, job) == ("cancelled", 3, 1, 0)


def test_job_of_another_tenant_can_neither_be_cancelled_nor_added_to(inbox):
    job = put(inbox, "a", tenant="acme")
    with pytest.raises(UnknownJob, match=r"is unknown.*GET /v1/jobs lists"):
        inbox.cancel(job, "")
    with pytest.raises(UnknownJob):
        put(inbox, "b", job=job)
    assert ids(inbox) == ["a"]


def test_writes_may_be_added_to_a_job_that_waits_runs_or_is_done(inbox, store, jobs):
    job = put(inbox, "a")
    assert put(inbox, "b", job=job) == job
    assert numbers(jobs, job) == ("queued", 2, 0, 0)
    writes = inbox.next_batch(32, MIB).writes
    with store.writing() as connection:
        finish(connection, writes, {"a": result("a"), "b": result("b")})
    assert numbers(jobs, job)[0] == "done"
    put(inbox, "a", "c", job=job)
    assert numbers(jobs, job) == ("running", 4, 2, 0) and jobs.get(job).finished_at is None


@pytest.mark.parametrize("why", ["of another collection", "cancelled"])
def test_job_that_takes_no_more_writes_is_refused_with_its_state(inbox, why):
    job = put(inbox, "a", collection="more" if why == "of another collection" else "docs")
    if why == "cancelled":
        inbox.cancel(job, "")
    with pytest.raises(InvalidRequest, match=r"takes no writes to 'docs'.*Leave job out"):
        put(inbox, "b", job=job)


def test_full_inbox_refuses_more_and_keeps_what_it_has(inbox, jobs):
    put(inbox, *"abcdef")
    with pytest.raises(Overloaded, match=r"inbox of writes is full \(6 waiting\).*raise retriever\.max_pending_writes"):
        put(inbox, "g", "h", "i")
    assert len(ids(inbox)) == 6 and len(jobs.recent()) == 1
    put(inbox, "g", "h")
    put(inbox, "a")  # in the place of the one that waits
    with pytest.raises(Overloaded) as full:
        put(inbox, "i")
    assert full.value.retry_after_s == 5


def test_batch_that_could_never_fit_is_a_bad_request(inbox):
    with pytest.raises(InvalidRequest, match=r"9 items, retriever\.max_pending_writes=8 may wait\. Send fewer"):
        put(inbox, *"abcdefghi")


def test_number_of_a_write_is_never_given_out_again(inbox, store):
    put(inbox, "a")
    (first,) = inbox.next_batch(32, MIB).writes
    inbox.cancel(first.job, "")
    put(inbox, "b")
    (second,) = inbox.next_batch(32, MIB).writes
    assert second.sequence > first.sequence


def test_discarded_collection_leaves_other_collections_waiting(inbox, store, jobs):
    job, other = put(inbox, "a", tenant="acme"), put(inbox, "b", collection="more")
    with store.writing() as connection:
        discard(connection, "docs")
    assert numbers(jobs, job, "acme")[0] == "cancelled"
    assert ids(inbox) == ["b"] and numbers(jobs, other)[0] == "running"


def test_start_up_fails_jobs_without_waiting_writes_only(inbox, jobs):
    waits, lost = put(inbox, "a"), jobs.create("other", "docs")
    assert jobs.fail_interrupted() == 1
    assert (jobs.get(waits).state, jobs.get(lost).state) == ("queued", "failed")


def test_oldest_finished_jobs_are_forgotten_and_no_others(inbox, jobs):
    waits = put(inbox, "a")
    finished = [jobs.create("other", "docs") for _ in range(4)]
    for one in finished:
        jobs.finish(one, "done")
    jobs.forget_old(keep=5)
    assert len(jobs.recent()) == 5
    jobs.forget_old(keep=2)
    assert {job.id for job in jobs.recent()} == {waits, *finished[2:]}
