"""The highest inner products, native and by numpy, against float64."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import alone
from kernels.alone import FLAGS, SOURCES, opened
from kernels.building import compiled
from kernels.near_rows import MAX_DIM, absence, near_rows, pack_near_rows

native = pytest.mark.skipif(absence() is not None, reason=f"no native kernel: {absence()}")
backends = pytest.mark.parametrize("backend", ["numpy", pytest.param("native", marks=native)])


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def expected(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    products = queries.astype(np.float64) @ rows.astype(np.float64).T
    return np.sort(products, axis=1)[:, ::-1][:, :k]


@backends
@pytest.mark.parametrize("num_rows", [1, 4, 63, 64, 65, 331, 1024])
@pytest.mark.parametrize(("num_queries", "dim"), [(1, 384), (2, 7), (5, 16), (6, 33), (32, 64), (67, 1)])
def test_highest_products_are_those_of_float64(backend, num_rows, num_queries, dim):
    draw = np.random.default_rng(num_rows * dim)
    rows, queries = (unit(draw.normal(size=(num, dim))) for num in (num_rows, num_queries))
    for k in (1, 5, 100):
        found = near_rows(queries, pack_near_rows(rows, backend=backend), k)
        assert found.shape == (num_queries, min(k, num_rows)) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected(queries, rows, k), atol=1e-6)


@backends
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 400),
    # Rows that codes cannot tell apart, all on one side, in clusters, and of any length.
    spread=st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 3.0]),
    length=st.sampled_from([1e-3, 1.0, 50.0]),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_rows_that_lie_close_together_are_told_apart_in_float32(backend, seed, num_rows, spread, length, sign):
    draw = np.random.default_rng(seed)
    centres = unit(draw.normal(size=(1 + seed % 3, 48)))
    rows = unit(centres[draw.integers(0, len(centres), num_rows)] + spread * draw.normal(size=(num_rows, 48)))
    rows *= np.float32(length)
    queries = np.float32(sign) * unit(centres[draw.integers(0, len(centres), 7)] + 0.1 * draw.normal(size=(7, 48)))
    found = near_rows(queries, pack_near_rows(rows, backend=backend), 5)
    np.testing.assert_allclose(found, expected(queries, rows, 5), atol=1e-6 * length)


@backends
def test_queries_that_lose_their_order_in_codes_are_told_apart_in_float32(backend):
    draw = np.random.default_rng(3)
    # Codes hold such rows exactly, and of such queries hardly more than the largest number.
    rows = draw.choice([-1.0, 1.0], size=(2_000, 48)).astype(np.float32)
    queries = draw.uniform(-0.006, 0.006, size=(9, 48)).astype(np.float32)
    queries[:, 0] = 1.0
    found = near_rows(queries, pack_near_rows(rows, backend=backend), 5)
    np.testing.assert_allclose(found, expected(queries, rows, 5), atol=1e-6)


@backends
def test_a_row_far_larger_than_its_neighbours_and_one_of_zeros_are_found(backend):
    rows = np.zeros((70, 9), np.float32)
    rows[3, 2], rows[69] = 1e4, -1.0
    queries = np.eye(9, dtype=np.float32)[:3]
    found = near_rows(queries, pack_near_rows(rows, backend=backend), 70)
    np.testing.assert_allclose(found, expected(queries, rows, 70), rtol=1e-6)


@backends
def test_a_query_of_zeros_is_as_near_to_all_and_one_that_is_not_finite_to_none(backend):
    rows = unit(np.random.default_rng(0).normal(size=(100, 8)))
    queries = np.zeros((3, 8), np.float32)
    queries[1, 4] = np.nan
    found = near_rows(queries, pack_near_rows(rows, backend=backend), 5)
    assert not found[[0, 2]].any()
    assert np.isnan(found[1]).all()


@backends
def test_a_query_gets_the_same_alone_and_among_others(backend):
    draw = np.random.default_rng(1)
    rows, queries = (unit(draw.normal(size=(num, 384))) for num in (500, 45))
    packed = pack_near_rows(rows, backend=backend)
    together = near_rows(queries, packed, 5)
    for row, query in enumerate(queries):
        np.testing.assert_allclose(near_rows(query[None], packed, 5)[0], together[row], atol=1e-6)


@backends
def test_queries_may_be_views_and_none_at_all(backend):
    draw = np.random.default_rng(2)
    rows, queries = (unit(draw.normal(size=(num, 12))) for num in (30, 8))
    packed = pack_near_rows(np.asfortranarray(rows), backend=backend)
    np.testing.assert_allclose(near_rows(queries[::2], packed, 3), expected(queries[::2], rows, 3), atol=1e-6)
    assert near_rows(queries[:0], packed, 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pack_near_rows(np.zeros((0, 4), np.float32)), r"\(0, 4\) float32; \[1 or more, 1 to 65536\]"),
        (lambda: pack_near_rows(np.zeros((1, MAX_DIM + 1), np.float32)), r"\(1, 65537\) float32"),
        (lambda: pack_near_rows(np.zeros((1, 4))), r"\(1, 4\) float64"),
        (lambda: pack_near_rows(np.full((1, 4), np.inf, np.float32)), "must be finite"),
        (lambda: near_rows(np.zeros((1, 3), np.float32), pack_near_rows(np.ones((1, 4), np.float32)), 1), r"\(1, 3\)"),
        (lambda: near_rows(np.zeros((1, 4)), pack_near_rows(np.ones((1, 4), np.float32)), 1), "float64"),
        (lambda: near_rows(np.zeros((1, 4), np.float32), pack_near_rows(np.ones((1, 4), np.float32)), 0), "k 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@native
@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for x86-64")
@pytest.mark.parametrize("dim", [384, 33])
def test_instructions_of_older_processors_give_the_same(tmp_path, monkeypatch, dim):
    flags = [flag.replace("-march=native", "-march=x86-64-v3") for flag in FLAGS]
    library = opened(compiled("alone", SOURCES, flags, cache=tmp_path))
    monkeypatch.setattr(alone, "_load", lambda: (library, None))
    assert (library.switchyard_near_panel(), library.switchyard_near_code()) == (16, 63)
    draw = np.random.default_rng(dim)
    centre = draw.normal(size=dim)
    # The largest codes there are, beside rows that are all alike.
    rows = unit(np.vstack([draw.normal(size=(301, dim)), centre + 1e-3 * draw.normal(size=(200, dim)), np.ones(dim)]))
    queries = unit(np.vstack([draw.normal(size=(34, dim)), centre, np.ones(dim), -np.ones(dim)]))
    found = near_rows(queries, pack_near_rows(rows, backend="native"), 5)
    np.testing.assert_allclose(found, expected(queries, rows, 5), atol=1e-6)
