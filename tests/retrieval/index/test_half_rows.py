"""The copy in 16 bits changes no result: near ties, huge and tiny numbers, masks and rows that move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.half_rows import HalfRows
from kernels.native import absence
from kernels.row_scan import encode_rows, row_scan

pytestmark = pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")
DIM = 16


def filled(vectors: np.ndarray, slots: np.ndarray | None = None) -> CpuRows:
    rows = CpuRows(DIM)
    rows.append(np.arange(len(vectors)), vectors.astype(np.float32), slots)
    return rows


def best_by_float64(vectors: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    return np.sort(vectors.astype(np.float64) @ query.astype(np.float64))[::-1][:k]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 150), st.sampled_from([1e-6, 1e-4, 1e-2]))
def test_rows_that_16_bits_cannot_tell_apart_are_ranked_by_their_full_scores(seed, k, spread):
    drawn = np.random.default_rng(seed)
    centre = drawn.standard_normal(DIM)
    vectors = (centre + spread * drawn.standard_normal((700, DIM))).astype(np.float32)
    queries = np.stack([centre, drawn.standard_normal(DIM)]).astype(np.float32)
    keys, scores = filled(vectors).search(queries, k)
    for row, query in enumerate(queries):
        np.testing.assert_allclose(scores[row], best_by_float64(vectors, query, k), rtol=3e-6, atol=1e-5)
        np.testing.assert_allclose(vectors[keys[row]] @ query, scores[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1.0, 1e4, 1e7, 1e14])
def test_numbers_of_any_size_are_searched_exactly(scale):
    drawn = np.random.default_rng(3)
    vectors = (scale * drawn.standard_normal((900, DIM))).astype(np.float32)
    query = drawn.standard_normal((1, DIM)).astype(np.float32)
    keys, scores = filled(vectors).search(query, 20)
    np.testing.assert_allclose(scores[0], best_by_float64(vectors, query[0], 20), rtol=1e-4, atol=1e-37)
    assert len(set(keys[0].tolist())) == 20


def test_one_row_far_larger_leaves_the_others_exact():
    vectors = np.random.default_rng(1).standard_normal((500, DIM)).astype(np.float32)
    vectors[77] = 1e6
    query = np.ones((1, DIM), np.float32)
    keys, scores = filled(vectors).search(query, 5)
    assert keys[0, 0] == 77
    np.testing.assert_allclose(scores[0], best_by_float64(vectors, query[0], 5), rtol=1e-5)


def test_equal_rows_across_the_cut_are_taken_by_key():
    vectors = np.tile(np.random.default_rng(0).standard_normal(DIM), (640, 1))
    rows = filled(vectors)
    rows.remove([0, 1, 2, 100])
    keys, scores = rows.search(vectors[:1].astype(np.float32), 30)
    assert keys[0].tolist() == [*range(3, 33)]
    assert len(set(scores[0].tolist())) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.26, 1.0))
def test_masked_rows_are_never_found_and_the_others_are(seed, k, share):
    drawn = np.random.default_rng(seed)
    vectors = drawn.standard_normal((400, DIM)).astype(np.float32)
    allowed = drawn.random(400) < share
    query = drawn.standard_normal((1, DIM)).astype(np.float32)
    keys, scores = filled(vectors, np.arange(400, dtype=np.int32)).search(query, k, allowed)
    assert allowed[keys[0]].all()
    np.testing.assert_allclose(scores[0], best_by_float64(vectors[allowed], query[0], k), rtol=1e-4, atol=1e-5)


def test_candidates_are_few_and_bounded_by_what_was_measured():
    drawn = np.random.default_rng(5)
    vectors = drawn.standard_normal((20_000, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    halves = HalfRows(DIM)
    halves.grow(len(vectors), 0)
    halves.write(0, vectors)
    query = vectors[:1]
    found = halves.candidates(query, len(vectors), 10, None)
    assert found is not None and 10 <= len(found[0]) < 100
    assert halves.bounds(query) < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-43, 1e-30, 1.0, 1e12]), st.sampled_from([1e-30, 1.0, 1e12]))
def test_no_product_of_codes_is_further_off_than_the_bound(seed, query_size, row_size):
    drawn = np.random.default_rng(seed)
    vectors = (row_size * drawn.standard_normal((200, DIM))).astype(np.float32)
    queries = (query_size * drawn.standard_normal((3, DIM))).astype(np.float32)
    halves = HalfRows(DIM)
    halves.write(0, vectors)
    coded, rows = encode_rows(torch.from_numpy(queries)), encode_rows(torch.from_numpy(vectors))
    found = row_scan(coded, rows)[0].flatten(1)[:, :200].numpy()
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert (np.abs(found - exact) <= halves.bounds(queries)[:, None]).all()


def test_copies_that_cannot_narrow_the_search_say_so():
    halves = HalfRows(DIM)
    halves.grow(50_000, 0)
    halves.write(0, np.ones((50_000, DIM), np.float32))
    assert halves.candidates(np.ones((1, DIM), np.float32), 50_000, 10, None) is None
    drawn = np.random.default_rng(2).standard_normal((50_001, DIM)).astype(np.float32)
    halves.write(0, drawn[1:])
    assert halves.candidates(drawn[:1], 50_000, 10, None) is not None
    # The error of the largest row counts for all.
    halves.write(0, 1e9 * drawn[:1])
    assert halves.candidates(-drawn[:1], 50_000, 10, None) is None
