"""A flat tier with frozen shards beside it, against brute force: whatever was frozen, built or removed, and when."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from executors import HeldExecutor, ImmediateExecutor
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.retrieval.index import freezing
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.freezing import Freezer
from engine.retrieval.index.frozen import FrozenRows

DIM = 8
NUM_SLOTS = 5


def new_rows(executor, freeze_at: int = 20) -> FrozenRows:
    freezer = Freezer(recall=0.99, threads=1, executor=executor)
    return FrozenRows(partial(CpuRows, DIM), freezer, freeze_at=freeze_at)


def vectors_of(keys, salt: int = 0) -> np.ndarray:
    """Whole numbers, so that scores tie and no order of summation changes one."""
    drawn = [np.random.default_rng((key, salt)).integers(-2, 3, DIM) for key in keys]
    return np.array(drawn, np.float32).reshape(-1, DIM)


def filled(executor, num_rows: int, freeze_at: int = 20) -> FrozenRows:
    rows = new_rows(executor, freeze_at)
    for first in range(0, num_rows, 10):
        keys = np.arange(first, min(first + 10, num_rows))
        rows.append(keys, vectors_of(keys))
    return rows


def found_in(rows: FrozenRows) -> list[int]:
    return sorted(rows.search(np.ones((1, DIM), np.float32), 10_000)[0][0].tolist())


numbers = st.sets(st.integers(0, 150), min_size=1, max_size=60)
steps = st.one_of(
    st.tuples(st.just("append"), numbers),
    st.tuples(st.just("remove"), numbers),
    st.tuples(st.just("build"), st.none()),
    st.tuples(
        st.just("search"), st.tuples(st.integers(1, 40), st.none() | st.lists(st.booleans(), min_size=5, max_size=5))
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25))
def test_search_is_exact_across_the_border_wherever_builds_begin_and_end(monkeypatch_lists, taken):
    executor = HeldExecutor()
    rows, expected, salt = new_rows(executor), {}, 0
    queries = vectors_of(range(1000, 1003))
    for step, argument in [*taken, ("search", (30, None))]:
        if step == "build":
            executor.run()
        elif step == "append":
            salt += 1  # a key that comes again may bring another vector
            keys = sorted(argument - expected.keys())
            vectors, slots = vectors_of(keys, salt), np.array([key % NUM_SLOTS for key in keys], np.int32)
            rows.reserve(len(keys))
            rows.append(np.array(keys, np.int64), vectors, slots)
            expected |= dict(zip(keys, vectors, strict=True))
        elif step == "remove":
            keys = sorted(argument & expected.keys())
            rows.remove(keys)
            for key in keys:
                del expected[key]
        else:
            k, allowed = argument
            found, scores = rows.search(queries, k, None if allowed is None else np.array(allowed))
            left = np.array([key for key in sorted(expected) if allowed is None or allowed[key % NUM_SLOTS]], np.int64)
            assert found.shape == scores.shape == (3, min(k, len(left)))
            for query, one_found, one_scores in zip(queries, found, scores, strict=True):
                exact = np.array([expected[key] @ query for key in left.tolist()])
                order = np.lexsort((left, -exact))[:k]
                assert one_found.tolist() == left[order].tolist()
                assert one_scores.tolist() == exact[order].tolist()
        assert len(rows) == len(expected)


@pytest.fixture(scope="module")
def monkeypatch_lists():
    """Shards of a few rows have several lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freezing, "_LEAST_ROWS_PER_LIST", 3)
        yield


def test_writes_and_searches_go_on_while_a_shard_is_built_and_the_next_call_takes_it_in():
    executor = HeldExecutor()
    rows = filled(executor, 20)
    assert rows.shards == ()
    rows.append(np.array([50]), vectors_of([50]))
    rows.remove([3, 50])
    assert found_in(rows) == [key for key in range(20) if key != 3]
    executor.run()
    rows.remove([4])
    assert rows.shards == ()
    assert found_in(rows) == [key for key in range(20) if key not in (3, 4)]
    assert [shard.facts()["chunks"] for shard in rows.shards] == [18]


def test_new_shards_swallow_those_that_are_not_larger():
    rows = filled(ImmediateExecutor(), 20 * 7)
    found_in(rows)
    assert sorted(len(shard) for shard in rows.shards) == [20, 40, 80]


def test_keys_in_a_shard_cannot_be_added_again_until_they_are_removed():
    rows = filled(ImmediateExecutor(), 25)
    found_in(rows)
    with pytest.raises(ValueError, match=r"keys \[3, 5\] have rows already"):
        rows.append(np.array([3, 5, 99]), vectors_of([3, 5, 99]))
    rows.remove([3, 5])
    rows.append(np.array([3, 5, 99]), vectors_of([3, 5, 99]))
    assert found_in(rows) == [*range(25), 99]


def test_removing_an_unknown_key_changes_neither_shards_nor_the_flat_tier():
    rows = filled(ImmediateExecutor(), 25)
    found_in(rows)
    with pytest.raises(KeyError):
        rows.remove([1, 24, 99])
    assert found_in(rows) == list(range(25)) and len(rows) == 25


@pytest.mark.parametrize("k", [0, 3])
def test_bad_queries_are_refused_as_by_flat_rows(k):
    rows = filled(ImmediateExecutor(), 25)
    with pytest.raises(InvalidRequest, match="k=0" if k == 0 else r"expected \[n, 8\]"):
        rows.search(np.zeros((1, DIM if k == 0 else DIM + 1), np.float32), k)


def test_shard_with_many_dead_rows_is_built_anew_without_them():
    executor = HeldExecutor()
    rows = filled(executor, 20)
    executor.run()
    found_in(rows)
    executor.run()  # gives back what the shard was built of
    rows.remove(list(range(5)))
    found_in(rows)
    assert rows.shards[0].facts()["dead"] == 5 and executor.run() == 0
    rows.remove([5, 6])
    found_in(rows)
    rows.remove([7])
    assert executor.run() == 1
    assert found_in(rows) == list(range(8, 20))
    assert [(shard.facts()["chunks"], shard.facts()["dead"]) for shard in rows.shards] == [(12, 1)]


def test_shard_without_living_rows_is_dropped():
    rows = filled(ImmediateExecutor(), 20)
    found_in(rows)
    rows.remove(list(range(20)))
    assert found_in(rows) == [] and rows.shards == () and len(rows) == 0


def test_rows_that_are_all_removed_while_their_shard_is_built_leave_none():
    executor = HeldExecutor()
    rows = filled(executor, 20)
    rows.remove(list(range(20)))
    executor.run()
    assert found_in(rows) == [] and rows.shards == ()


def test_failed_build_is_said_loses_nothing_and_is_tried_again_with_more_rows(monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(freezing, "cluster_centres", lambda *_: 1 / 0)
        rows = filled(ImmediateExecutor(), 30)
        rows.remove([2])
        assert found_in(rows) == [0, 1, *range(3, 30)] and rows.shards == ()
    assert caplog.text.count("a shard of 20 rows could not be built; they are searched as before") == 1
    rows.append(np.arange(100, 121), vectors_of(range(100, 121)))
    assert found_in(rows) == [0, 1, *range(3, 30), *range(100, 121)]
    assert sum(len(shard) for shard in rows.shards) >= 19


def test_closing_ends_a_build_that_runs_and_the_rows_stay_searchable():
    begun, may_go_on = threading.Event(), threading.Event()

    class Pool(ThreadPoolExecutor):
        def submit(self, task, /, *args, **kwargs):
            def wait_then(*args, **kwargs):
                begun.set()
                may_go_on.wait()
                return task(*args, **kwargs)

            return super().submit(wait_then, *args, **kwargs)

    freezer = Freezer(recall=0.99, threads=1, executor=Pool(1))
    rows = FrozenRows(partial(CpuRows, DIM), freezer, freeze_at=20)
    rows.append(np.arange(20), vectors_of(range(20)))
    begun.wait()
    closing = threading.Thread(target=freezer.close)
    closing.start()
    freezer._is_stopped.wait()
    may_go_on.set()
    closing.join()
    assert isinstance(rows._build.exception(), freezing.FreezingStopped)
    assert found_in(rows) == list(range(20))
    rows.append(np.arange(20, 60), vectors_of(range(20, 60)))
    assert found_in(rows) == list(range(60)) and rows.shards == ()


def test_searches_and_writes_of_many_threads_are_exact_while_shards_are_built_beside_them():
    freezer = Freezer(recall=0.99, threads=1)
    rows = FrozenRows(partial(CpuRows, DIM), freezer, freeze_at=300)
    lock, living, failures = threading.Lock(), set(), []
    queries = vectors_of(range(5000, 5002))
    all_vectors = vectors_of(range(3000))

    def check() -> None:
        while len(living) < 2500:
            with lock:
                keys, scores = rows.search(queries, 20)
                left = np.array(sorted(living), np.int64)
            for query, found, values in zip(queries, keys, scores, strict=True):
                exact = all_vectors[left] @ query
                order = np.lexsort((left, -exact))[:20]
                if found.tolist() != left[order].tolist() or values.tolist() != exact[order].tolist():
                    failures.append((found, left[order]))
                    return

    readers = [threading.Thread(target=check) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(0, 3000, 50):
        keys = np.arange(first, first + 50)
        removed = keys[::10].tolist()
        with lock:
            rows.append(keys, all_vectors[keys])
            rows.remove(removed)
            living.update(set(keys.tolist()) - set(removed))
    for reader in readers:
        reader.join()
    freezer.close()
    assert not failures
    assert found_in(rows) == sorted(living) and len(living) == 2700
