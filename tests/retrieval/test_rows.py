"""Vector rows against brute force in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.retrieval.rows import VectorRows

DIM = 8


def vectors_of(*keys: int) -> np.ndarray:
    return np.stack([np.random.default_rng(key).standard_normal(DIM) for key in keys]).astype(np.float32)


def filled(*keys: int) -> VectorRows:
    rows = VectorRows(DIM)
    rows.append(np.array(keys, np.int64), vectors_of(*keys))
    return rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 400), max_size=120)), max_size=8),
    st.integers(1, 60),
    st.integers(1, 30),
)
def test_search_equals_brute_force_after_any_appends_and_removes(steps, k, num_queries):
    rows, expected = VectorRows(DIM), {}
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


def test_ties_are_broken_by_key_even_across_the_cut():
    rows = VectorRows(DIM)
    same = np.tile(vectors_of(1), (50, 1))
    rows.append(np.arange(50, 0, -1, dtype=np.int64), same)
    rows.remove([3])
    keys, _ = rows.search(vectors_of(1), 4)
    assert keys.tolist() == [[1, 2, 4, 5]]


def test_empty_rows_answer_with_empty_results():
    keys, scores = VectorRows(DIM).search(vectors_of(1, 2), 5)
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
    rows = VectorRows(DIM)
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
