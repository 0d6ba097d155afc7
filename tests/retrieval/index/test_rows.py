"""Vector rows against brute force in numpy."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from executors import ImmediateExecutor
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.retrieval.index import gpu_rows
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.freezing import Freezer
from engine.retrieval.index.frozen import FrozenRows
from engine.retrieval.index.gpu_rows import MAX_FAISS_K, GpuRows

DIM = 8
ON_TORCH = partial(GpuRows, device="cpu", dtype=torch.float32)


def half_frozen(dim: int) -> FrozenRows:
    """Every few rows a shard, so that searches and removals cross the border."""
    freezer = Freezer(recall=1, threads=1, executor=ImmediateExecutor())
    return FrozenRows(partial(CpuRows, dim), freezer, freeze_at=40)


ON_FAISS = partial(CpuRows, is_halved=False)
backends = pytest.mark.parametrize(
    "new_rows", [CpuRows, ON_FAISS, ON_TORCH, half_frozen], ids=["halves", "faiss", "torch", "frozen"]
)


def vectors_of(*keys: int) -> np.ndarray:
    return np.stack([np.random.default_rng(key).standard_normal(DIM) for key in keys]).astype(np.float32)


def filled(*keys: int) -> CpuRows:
    rows = CpuRows(DIM)
    rows.append(np.array(keys, np.int64), vectors_of(*keys))
    return rows


@backends
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 400), max_size=120)), max_size=8),
    st.integers(1, 60),
    st.integers(1, 30),
)
def test_search_equals_brute_force_after_any_appends_and_removes(new_rows, steps, k, num_queries):
    rows, expected = new_rows(DIM), {}
    for is_append, chosen in steps:
        keys = sorted(chosen - expected.keys() if is_append else chosen & expected.keys())
        if is_append and keys:
            rows.append(np.array(keys, np.int64), vectors_of(*keys))
            expected |= dict(zip(keys, vectors_of(*keys), strict=True))
        elif not is_append:
            rows.remove(keys)
            for key in keys:
                del expected[key]
    assert len(rows) == len(expected)
    queries = vectors_of(*range(1000, 1000 + num_queries))
    found, scores = rows.search(queries, k)
    assert found.shape == scores.shape == (num_queries, min(k, len(expected)))
    if expected:
        all_keys = np.array(sorted(expected))
        all_scores = queries @ np.stack([expected[key] for key in all_keys.tolist()]).T
        order = np.argsort(-all_scores, axis=1)[:, : min(k, len(expected))]
        np.testing.assert_allclose(scores, np.take_along_axis(all_scores, order, axis=1), rtol=1e-4, atol=1e-5)
        by_key = dict(zip(all_keys.tolist(), all_scores.T, strict=True))
        for row in range(num_queries):
            np.testing.assert_allclose([by_key[key][row] for key in found[row].tolist()], scores[row], 1e-4, 1e-5)
            assert len(set(found[row].tolist())) == found.shape[1]


@backends
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.integers(1, 40),
    st.sets(st.integers(0, 299)),
)
def test_filtered_search_equals_brute_force_plus_mask(new_rows, num_rows, num_slots, chosen, k, removed):
    rng = np.random.default_rng(num_rows)
    slots = rng.integers(0, num_slots, num_rows).astype(np.int32)
    # Whole numbers, so that ties occur and no order of summation changes a score.
    vectors = rng.integers(-2, 3, (num_rows, DIM)).astype(np.float32)
    rows = new_rows(DIM)
    rows.append(np.arange(num_rows), vectors, slots)
    rows.remove([key for key in removed if key < num_rows])
    allowed = np.array(chosen[:num_slots])
    queries = rng.integers(-2, 3, (5, DIM)).astype(np.float32)
    found, scores = rows.search(queries, k, allowed)
    left = np.array([key for key in range(num_rows) if key not in removed and allowed[slots[key]]], np.int64)
    assert found.shape == (5, min(k, len(left)))
    for query, keys, values in zip(queries, found, scores, strict=True):
        exact = vectors[left] @ query
        order = np.lexsort((left, -exact))[:k]
        assert keys.tolist() == left[order].tolist()
        assert values.tolist() == exact[order].tolist()


@backends
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_filtered_search_is_exact_over_several_blocks_whatever_share_is_allowed(new_rows, share):
    rng = np.random.default_rng(7)
    vectors = rng.integers(-9, 10, (70_000, DIM)).astype(np.float32)
    rows = new_rows(DIM)
    rows.append(np.arange(len(vectors)), vectors, np.arange(len(vectors), dtype=np.int32))
    allowed = rng.random(len(vectors)) < share
    query = rng.integers(-9, 10, (1, DIM)).astype(np.float32)
    exact = (vectors @ query[0])[allowed]
    left = np.flatnonzero(allowed)
    keys, _ = rows.search(query, 100, allowed)
    assert keys[0].tolist() == left[np.lexsort((left, -exact))[:100]].tolist()


@backends
def test_ties_are_broken_by_key_even_across_the_cut(new_rows):
    rows = new_rows(DIM)
    same = np.tile(vectors_of(1), (50, 1))
    rows.append(np.arange(50, 0, -1, dtype=np.int64), same)
    rows.remove([3])
    keys, _ = rows.search(vectors_of(1), 4)
    assert keys.tolist() == [[1, 2, 4, 5]]


def test_empty_rows_answer_with_empty_results():
    keys, scores = CpuRows(DIM).search(vectors_of(1, 2), 5)
    assert keys.shape == scores.shape == (2, 0)


def test_k_is_clamped_to_the_number_of_rows():
    keys, _ = filled(1, 2, 3).search(vectors_of(2), 1_000_000)
    assert sorted(keys[0].tolist()) == [1, 2, 3]
    assert keys[0, 0] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_vectors_that_are_not_finite_are_refused_on_both_sides(bad):
    rows = filled(1, 2)
    vectors = vectors_of(3)
    vectors[0, 2] = bad
    with pytest.raises(InvalidRequest, match="NaN, infinity or a component above 1e"):
        rows.append(np.array([3], np.int64), vectors)
    with pytest.raises(InvalidRequest, match="NaN, infinity"):
        rows.search(vectors, 1)
    assert len(rows) == 2


def test_largest_allowed_components_give_finite_scores():
    rows = CpuRows(DIM)
    extreme = np.full((2, DIM), 1e15, np.float32)
    extreme[1, ::2] *= -1
    rows.append(np.array([7, 8], np.int64), extreme)
    keys, scores = rows.search(extreme, 2)
    assert np.isfinite(scores).all()
    assert keys.tolist() == [[7, 8], [8, 7]]


@pytest.mark.parametrize("shape", [(2, DIM + 1), (DIM,)])
def test_vectors_of_another_size_are_refused_with_both_sizes(shape):
    with pytest.raises(InvalidRequest, match=rf"expected \[n, {DIM}\] float32"):
        filled(1).search(np.zeros(shape, np.float32), 1)


def test_k_below_one_is_refused():
    with pytest.raises(InvalidRequest, match="k=0 is too small"):
        filled(1).search(vectors_of(1), 0)


def test_known_or_repeated_keys_are_refused_and_change_nothing():
    rows = filled(1, 2)
    for keys in ([2, 3], [4, 4]):
        with pytest.raises(ValueError, match="keys"):
            rows.append(np.array(keys, np.int64), vectors_of(*keys))
    assert len(rows) == 2


def test_removing_an_unknown_key_is_refused_and_changes_nothing():
    rows = filled(1, 2)
    with pytest.raises(KeyError):
        rows.remove([1, 9])
    assert sorted(rows.search(vectors_of(1), 5)[0][0].tolist()) == [1, 2]


def test_rows_in_half_precision_give_the_scores_of_the_rounded_vectors():
    rows = GpuRows(DIM, device="cpu")
    rows.append(np.arange(50), vectors_of(*range(50)))
    keys, scores = rows.search(vectors_of(7), 3)
    halves = vectors_of(*range(50)).astype(np.float16).astype(np.float32)
    exact = halves @ vectors_of(7)[0].astype(np.float16).astype(np.float32)
    assert keys[0].tolist() == np.argsort(-exact)[:3].tolist()
    np.testing.assert_allclose(scores[0], exact[keys[0]], rtol=1e-6)


@pytest.mark.parametrize(("share", "is_masked"), [(0.1, False), (0.3, False), (0.4, True), (1.0, True)])
def test_many_allowed_rows_are_masked_in_place_and_few_are_copied(share, is_masked):
    class Noting(GpuRows):
        num_masked = 0

        def _masked(self, *arguments):
            self.num_masked += 1
            return super()._masked(*arguments)

    rows = Noting(DIM, device="cpu", dtype=torch.float32)
    vectors = np.random.default_rng(0).integers(-9, 10, (200, DIM)).astype(np.float32)
    rows.append(np.arange(200), vectors, np.arange(200, dtype=np.int32))
    allowed = np.arange(200) < share * 200
    keys, _ = rows.search(vectors[:3], 7, allowed)
    exact = np.where(allowed, vectors[:3] @ vectors.T, -np.inf)
    assert keys.tolist() == np.argsort(-exact, axis=1, kind="stable")[:, :7].tolist()
    assert rows.num_masked == is_masked


class FaissThatAborts:
    """knn_gpu as FAISS has it: it checks k late, and by ending the process."""

    METRIC_INNER_PRODUCT = 0

    def knn_gpu(self, resources, queries, stored, k, metric):
        assert 0 < k <= min(MAX_FAISS_K, len(stored)) and stored.is_contiguous(), "the process is gone"
        assert len(queries) <= 512
        return (queries @ stored.T).topk(k)


@pytest.mark.parametrize("k", [1, 100, MAX_FAISS_K - 1, MAX_FAISS_K, MAX_FAISS_K + 1, 10**6])
@pytest.mark.parametrize("is_filtered", [False, True])
def test_no_k_reaches_faiss_that_would_end_the_process(k, is_filtered):
    rows = ON_TORCH(DIM)
    rows._faiss = (FaissThatAborts(), None)
    rng = np.random.default_rng(0)
    # Whole numbers, so that no order of summation changes a score.
    vectors = rng.integers(-9, 10, (3000, DIM)).astype(np.float32)
    rows.append(np.arange(3000), vectors, np.arange(3000, dtype=np.int32))
    allowed = rng.random(3000) < 0.9 if is_filtered else np.ones(3000, bool)
    queries = rng.integers(-9, 10, (600, DIM)).astype(np.float32)
    keys, _ = rows.search(queries, k, allowed if is_filtered else None)
    left = np.flatnonzero(allowed)
    assert keys.shape == (600, min(k, len(left)))
    assert keys[5].tolist() == left[np.argsort(-(vectors[left] @ queries[5]), kind="stable")][:k].tolist()


def test_faiss_without_a_gpu_is_said_and_not_used(caplog):
    gpu_rows.faiss_gpu.cache_clear()
    with caplog.at_level("INFO"):
        assert gpu_rows.faiss_gpu() is None
    assert "this build of FAISS has no GPU" in caplog.text


def test_without_faiss_the_gpu_rows_run_on_torch(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    gpu_rows.faiss_gpu.cache_clear()
    with caplog.at_level("INFO"):
        assert gpu_rows.faiss_gpu() is None
    gpu_rows.faiss_gpu.cache_clear()
    assert "runs on torch: FAISS cannot be imported" in caplog.text
