"""One frozen shard: what it reads, masks and measures."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from executors import ImmediateExecutor
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval.index.clusters import cluster_centres, nearest_centres
from engine.retrieval.index.freezing import Freezer
from engine.retrieval.index.rows import Part
from engine.retrieval.index.shard import Shard

DIM = 16
NUM_ROWS = 20_000  # above what is searched exactly for being few


def clustered(num_rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((200, DIM))
    points = centres[rng.integers(0, len(centres), num_rows)] + 0.3 * rng.standard_normal((num_rows, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def build(vectors: np.ndarray, *, recall: float = 0.99, keys: np.ndarray | None = None) -> Shard:
    keys = np.arange(len(vectors)) * 3 if keys is None else keys
    part = Part(keys, (keys % 100).astype(np.int32), lambda: vectors)
    return Freezer(recall=recall, threads=1, executor=ImmediateExecutor()).start([part]).result()


@cache
def rows_and_shard() -> tuple[np.ndarray, Shard]:
    vectors = clustered(NUM_ROWS, 1)
    return vectors, build(vectors)


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]) / exact.shape[1])


def exact_keys(queries: np.ndarray, vectors: np.ndarray, k: int, chosen: np.ndarray) -> np.ndarray:
    return 3 * chosen[np.argsort(-(queries @ vectors[chosen].T), axis=1)[:, :k]]


@pytest.mark.parametrize("k", [10, 100, 300])
@pytest.mark.parametrize("share", [None, 0.9, 0.5, 0.02])
def test_recall_reaches_the_target_at_every_depth_and_under_filters_reading_part_of_the_lists(k, share):
    vectors, shard = rows_and_shard()
    queries = clustered(100, 2)
    allowed = None if share is None else np.random.default_rng(3).random(100) < share
    chosen = np.arange(NUM_ROWS) if share is None else np.flatnonzero(allowed[3 * np.arange(NUM_ROWS) % 100])
    found, scores = shard.search(queries, k, allowed)
    exact = exact_keys(queries, vectors, k, chosen)
    assert found.shape == exact.shape
    assert recall_of(found, exact) >= 0.99
    assert set(found.ravel().tolist()) <= set((3 * chosen).tolist())
    np.testing.assert_allclose(scores, np.einsum("qe,qke->qk", queries, vectors[found // 3]), atol=1e-5)
    assert shard.reaches[0].nprobe < shard.num_lists / 10


def test_measured_recall_is_told_and_a_higher_target_reads_more_lists():
    vectors, shard = rows_and_shard()
    modest = build(vectors, recall=0.5)
    assert [reach.k for reach in shard.reaches] == [10, 30, 100, 300, 1000]
    assert all(reach.recall >= 0.99 for reach in shard.reaches)
    assert modest.reaches[0].nprobe < shard.reaches[0].nprobe
    assert shard.facts() == {
        "chunks": NUM_ROWS,
        "dead": 0,
        "bytes": NUM_ROWS * (4 * DIM + 33) + 4 * DIM * shard.num_lists,
        "lists": shard.num_lists,
        "reaches": [{"k": one.k, "nprobe": one.nprobe, "recall": one.recall} for one in shard.reaches],
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 400), st.integers(1, 4))
def test_no_row_that_is_dead_or_not_allowed_comes_back_and_none_is_missing_however_few_lists_are_read(
    seed, share, num_results, nprobe
):
    _, shard = rows_and_shard()
    rng = np.random.default_rng(seed)
    is_selected = rng.random(NUM_ROWS) < share
    if seed % 2:  # whole lists without any selected row
        is_selected &= np.repeat(rng.random(shard.num_lists) < 0.1, shard._lists.sizes)
    num_results = min(num_results, int(is_selected.sum()))
    if num_results == 0:
        return
    rows, scores = shard.nearest(clustered(3, seed), num_results, nprobe, is_selected)
    for one_rows, one_scores in zip(rows, scores, strict=True):
        found = one_rows[np.isfinite(one_scores)]
        assert len(found) >= num_results and len(set(found.tolist())) == len(found)
        assert is_selected[found].all() and (one_rows[~np.isfinite(one_scores)] == -1).all()


def test_removed_rows_are_neither_found_nor_held_nor_part_of_the_next_build():
    vectors = clustered(NUM_ROWS, 1)
    shard = build(vectors)
    queries = vectors[:50]
    first = shard.search(queries, 5, None)[0]
    dead = np.unique(first)
    assert shard.held(np.append(dead, 1)).tolist() == dead.tolist()
    shard.remove(dead.tolist())
    assert shard.held(dead).tolist() == []
    assert not np.isin(shard.search(queries, 5, None)[0], dead).any()
    part = shard.part()
    left = np.setdiff1d(3 * np.arange(NUM_ROWS), dead)
    assert np.sort(part.keys).tolist() == left.tolist() and len(shard) == len(left)
    assert shard.dead_share == pytest.approx(len(dead) / NUM_ROWS)
    np.testing.assert_array_equal(part.read(), vectors[part.keys // 3])
    np.testing.assert_array_equal(part.slots, part.keys % 100)


def test_slots_of_removed_rows_may_lie_beyond_a_shorter_mask():
    shard = build(clustered(60, 1), keys=np.arange(60))
    shard.remove(list(range(30, 60)))
    allowed = np.arange(30) % 2 == 0
    assert sorted(shard.search(clustered(1, 2), 60, allowed)[0][0].tolist()) == list(range(0, 30, 2))


def test_ties_across_the_cut_are_broken_by_key_though_they_lie_in_one_list():
    vectors = np.repeat(clustered(4, 5), 50, axis=0)
    keys = np.random.default_rng(0).permutation(200)
    shard = build(vectors, keys=keys)
    found, _ = shard.search(vectors[:1], 4, None)
    assert found[0].tolist() == sorted(keys[:50].tolist())[:4]


@pytest.mark.parametrize("num_rows", [1, 2, 17])
def test_shards_of_a_few_rows_can_be_built_and_searched(num_rows):
    vectors = clustered(num_rows, 1)
    shard = build(vectors)
    found, _ = shard.search(vectors, 100, None)
    assert found.shape == (num_rows, num_rows) and found[:, 0].tolist() == (3 * np.arange(num_rows)).tolist()


@pytest.mark.parametrize("vectors", [np.zeros((300, DIM)), np.full((300, DIM), 1e15), np.eye(DIM)[np.zeros(300, int)]])
def test_rows_without_direction_of_huge_size_or_all_alike_freeze_as_well(vectors):
    shard = build(vectors.astype(np.float32))
    found, scores = shard.search(vectors[:2].astype(np.float32), 3, None)
    assert found.tolist() == [[0, 3, 6]] * 2 and np.isfinite(scores).all()


def test_clusters_that_are_apart_are_found():
    rng = np.random.default_rng(0)
    points = np.eye(DIM, dtype=np.float32)[rng.integers(0, 4, 800)] + 0.05 * rng.standard_normal((800, DIM))
    points = points.astype(np.float32)
    centres = cluster_centres(points, 12, rng, lambda: None)
    nearest = nearest_centres(points, centres, lambda: None)
    assert centres.shape == (12, DIM)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    for number in np.unique(nearest):
        assert len(np.unique(points[nearest == number].argmax(axis=1))) == 1


def test_clustering_stops_when_told_to():
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        cluster_centres(clustered(100, 1), 5, np.random.default_rng(0), stop)
