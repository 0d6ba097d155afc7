"""The background worker: nothing that goes wrong with a write, the disk or the database ends it or loses a write."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from engine.errors import ComponentUnavailable, InvalidRequest, StorageFull
from engine.retrieval.backlog import BATCH_ITEMS, Backlog
from engine.retrieval.store.inbox import Inbox, WaitingBatch, finish
from engine.retrieval.store.jobs import Jobs
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, WriteResult

WAIT_S = 30


class Appliers:
    """Stands for the writer: `rule` says what becomes of a document."""

    def __init__(self, store: Store, rule: Callable[[str], object]) -> None:
        self._store = store
        self._rule = rule
        self.batches: list[list[str]] = []

    def __call__(self, batch: WaitingBatch, *, is_last_try: bool) -> list[WriteResult]:
        self.batches.append([write.item.id for write in batch.writes])
        results = {}
        for write in batch.writes:
            outcome = self._rule(write.item.id)
            if isinstance(outcome, InvalidRequest | ComponentUnavailable):
                results[write.item.id] = WriteResult(write.item.id, "failed", 1, error=outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                results[write.item.id] = WriteResult(write.item.id, "created", 1)
        handled = {id: one for id, one in results.items() if is_last_try or not one.is_transient}
        with self._store.writing() as connection:
            finish(connection, batch.writes, handled)
        return list(results.values())


@pytest.fixture
def store(tmp_path, store_at):
    store = Store(tmp_path, url=store_at(tmp_path))
    yield store
    store.close()


@pytest.fixture
def work(store):
    """Runs a backlog over writes of these ids until their job has ended; returns the job and what was applied."""
    opened: list[Backlog] = []

    def run(rule: Callable[[str], object], *ids: str, until: Callable[[Backlog], bool] | None = None):
        inbox, jobs, applier = Inbox(store, 1000), Jobs(store), Appliers(store, rule)
        job = inbox.put("docs", "", [DocumentWrite(id) for id in ids])
        backlog = Backlog(inbox, jobs, applier, first_delay_s=0.001)
        opened.append(backlog)
        backlog.notify()
        wait_for(lambda: until(backlog) if until else jobs.get(job).is_finished)
        return jobs.get(job), applier.batches

    yield run
    for backlog in opened:
        backlog.close()


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(WAIT_S * 1000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it did not come to that")


def test_writes_are_applied_in_order_in_bounded_batches(work):
    ids = [f"{number:03}" for number in range(BATCH_ITEMS + 5)]
    job, batches = work(lambda _: None, *ids)
    assert (job.state, job.done, job.failed) == ("done", len(ids), 0)
    assert batches == [ids[:BATCH_ITEMS], ids[BATCH_ITEMS:]]


def test_failing_write_is_named_and_stops_no_other(work):
    job, _ = work(lambda id: InvalidRequest("is not UTF-8 text") if id == "b" else None, "a", "b", "c")
    assert (job.state, job.done, job.failed) == ("done", 2, 1)
    assert job.errors == [{"item": "b", "error": "is not UTF-8 text"}]


def test_bug_met_by_one_write_fails_that_write_alone_and_goes_to_the_log(work, caplog):
    job, batches = work(lambda id: ValueError("a bug") if id == "b" else None, "a", "b", "c")
    assert (job.state, job.done, job.failed) == ("done", 2, 1)
    assert "an unexpected error happened (ValueError); the server's log" in job.errors[0]["error"]
    assert batches == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert "a bug" in caplog.text and "document b of collection docs" in caplog.text


@pytest.mark.parametrize("trouble", [StorageFull("disk"), OSError("no descriptors")], ids=lambda e: type(e).__name__)
def test_trouble_of_the_machine_is_waited_out_and_nothing_is_lost(work, trouble):
    left = [trouble] * 9
    job, batches = work(lambda _: left.pop() if left else None, "a", "b")
    assert (job.state, job.done, job.failed) == ("done", 2, 0)
    assert batches == [["a", "b"]] * 10


def test_worker_says_what_it_waits_for_until_that_has_passed(work):
    is_full = [True]

    def rule(_: str) -> object:
        return StorageFull("disk") if is_full[0] else None

    job, _ = work(rule, "a", until=lambda backlog: backlog.problem is not None)
    assert (job.state, job.done) == ("running", 0)
    told: list[str] = []

    def until(backlog: Backlog) -> bool:
        told.append(backlog.problem or "")
        is_full[0] = not any(told)
        return bool(any(told) and not backlog.problem)

    work(rule, "b", until=until)
    assert any("no space left for disk" in one for one in told)


def test_write_that_can_be_tried_later_is_tried_again(work):
    left = [ComponentUnavailable("document parser", "all are busy")] * 3
    job, batches = work(lambda id: left.pop() if id == "b" and left else None, "a", "b")
    assert (job.done, job.failed) == (2, 0)
    assert batches == [["a", "b"], ["b"], ["b"], ["b"]]


def test_write_that_is_never_possible_is_given_up_and_those_behind_it_go_on(work):
    never = ComponentUnavailable("document parser", "its process does not start")
    ids = [f"{number:03}" for number in range(BATCH_ITEMS + 1)]
    job, batches = work(lambda id: never if id < f"{BATCH_ITEMS:03}" else None, *ids)
    assert (job.state, job.done, job.failed) == ("done", 1, BATCH_ITEMS)
    assert "its process does not start" in job.errors[0]["error"]
    assert len(batches) == 7


def test_backlog_closes_while_it_waits_and_begins_nothing_afterwards(store):
    inbox, jobs = Inbox(store, 10), Jobs(store)
    applier = Appliers(store, lambda _: StorageFull("disk"))
    backlog = Backlog(inbox, jobs, applier, first_delay_s=3600)
    inbox.put("docs", "", [DocumentWrite("a")])
    backlog.notify()
    wait_for(lambda: backlog.problem is not None)
    backlog.close()
    backlog.notify()
    backlog.close()
    assert applier.batches == [["a"]]
