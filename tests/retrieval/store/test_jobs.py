"""Jobs: what a client is told about a long task, also after a restart."""

from __future__ import annotations

import pytest

from engine.retrieval.store.jobs import MAX_ERRORS, Jobs
from engine.retrieval.store.store import Store


@pytest.fixture
def store(tmp_path, store_at):
    store = Store(tmp_path, url=store_at(tmp_path))
    yield store
    store.close()


@pytest.fixture
def jobs(store) -> Jobs:
    return Jobs(store)


def test_job_runs_from_queued_to_done_and_counts_its_items(jobs):
    job_id = jobs.create("ingest", "docs", total=3)
    queued = jobs.get(job_id)
    assert (queued.state, queued.total, queued.done, queued.started_at) == ("queued", 3, 0, None)
    assert jobs.start(job_id)
    assert jobs.advance(job_id, done=2)
    assert jobs.advance(job_id, errors=[("site/a", "is not UTF-8 text")])
    assert jobs.finish(job_id, "done")
    done = jobs.get(job_id)
    assert (done.kind, done.collection, done.state, done.done, done.failed) == ("ingest", "docs", "done", 2, 1)
    assert done.errors == [{"item": "site/a", "error": "is not UTF-8 text"}]
    assert done.created_at <= done.started_at <= done.finished_at == done.updated_at


def test_job_that_has_ended_stays_as_it_is(jobs):
    job_id = jobs.create("ingest", "docs")
    assert jobs.finish(job_id, "cancelled")
    assert not jobs.start(job_id)
    assert not jobs.advance(job_id, done=1)
    assert not jobs.set_total(job_id, 9)
    assert not jobs.finish(job_id, "done")
    job = jobs.get(job_id)
    assert (job.state, job.done, job.total) == ("cancelled", 0, None)


def test_errors_of_a_job_are_bounded_and_all_are_counted(jobs):
    job_id = jobs.create("ingest", "docs")
    jobs.start(job_id)
    for first in (0, 80):
        jobs.advance(job_id, errors=[(f"item {first + i}", "x" * 5000) for i in range(80)])
    job = jobs.get(job_id)
    assert (job.failed, len(job.errors)) == (160, MAX_ERRORS)
    assert job.errors[-1]["item"] == "item 99"
    assert len(job.errors[0]["error"]) == 1000


def test_job_that_a_crash_interrupted_is_failed_at_the_next_start(tmp_path, store_at):
    store = Store(tmp_path, url=store_at(tmp_path))
    jobs = Jobs(store)
    running, queued, done = (jobs.create("ingest", "docs") for _ in range(3))
    jobs.start(running)
    jobs.finish(done, "done")
    store.close()
    store = Store(tmp_path, url=store_at(tmp_path))
    jobs = Jobs(store)
    assert jobs.fail_interrupted() == 2
    assert [jobs.get(one).state for one in (running, queued, done)] == ["failed", "failed", "done"]
    assert jobs.get(running).errors == [{"item": "", "error": "the server ended before the job did; send it again."}]
    assert jobs.fail_interrupted() == 0
    store.close()


def test_tenants_see_their_own_jobs_only_newest_first(jobs):
    first, second = jobs.create("ingest", "docs"), jobs.create("ingest", "docs")
    other = jobs.create("ingest", "docs", tenant="acme")
    assert [job.id for job in jobs.recent()] == [second, first]
    assert [job.id for job in jobs.recent(limit=1)] == [second]
    assert jobs.get(other) is None
    assert jobs.get(other, tenant="acme").tenant == "acme"
    assert len({first, second, other}) == 3


def test_time_left_follows_from_the_rate_of_the_job_itself(jobs):
    job_id = jobs.create("ingest", "docs", total=10)
    assert jobs.get(job_id).eta_s(1e12) is None and jobs.get(job_id).progress == 0
    jobs.start(job_id)
    assert jobs.get(job_id).eta_s(1e12) is None
    jobs.advance(job_id, done=3, errors=[("a", "bad")])
    job = jobs.get(job_id)
    assert job.progress == 0.4
    assert job.eta_s(job.started_at + 8.0) == pytest.approx(12.0)
    jobs.finish(job_id, "cancelled")
    assert jobs.get(job_id).eta_s(1e12) is None and jobs.get(job_id).progress == 0.4
