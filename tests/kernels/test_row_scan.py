"""Scores of rows in 16-bit codes, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native import absence
from kernels.row_scan import BLOCK_ROWS, MAX_CODE_NORM, CodedRows, encode_rows, row_dots, row_scan

native = pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")


@native
@pytest.mark.parametrize("num_rows", [1, 3, 63, 64, 65, 257])
@pytest.mark.parametrize(("num_queries", "dim"), [(1, 384), (2, 7), (3, 16), (4, 33), (32, 64), (67, 17)])
@pytest.mark.parametrize("has_mask", [False, True])
def test_native_scores_equal_the_reference_to_the_last_bit(num_rows, num_queries, dim, has_mask):
    drawn = torch.Generator().manual_seed(num_rows * dim)
    queries = encode_rows(torch.randn(num_queries, dim, generator=drawn))
    rows = encode_rows(torch.randn(num_rows, dim, generator=drawn))
    allowed = torch.rand(num_rows, generator=drawn) < 0.5 if has_mask else None
    scores, maxima = row_scan(queries, rows, allowed, backend="native")
    expected, expected_maxima = row_scan(queries, rows, allowed, backend="torch")
    assert torch.equal(scores, expected) and torch.equal(maxima, expected_maxima)
    assert scores.shape == (num_queries, -(-num_rows // BLOCK_ROWS), BLOCK_ROWS)
    assert (scores.flatten(1)[:, num_rows:] == -torch.inf).all()


@native
@pytest.mark.parametrize("dim", [1, 16, 384, 4096])
def test_products_of_the_largest_codes_fit_the_sums(dim):
    vectors = torch.cat([torch.ones(2, dim), torch.eye(1, dim)])
    vectors[1] = -1
    coded = encode_rows(vectors)
    scores, _ = row_scan(coded, coded, backend="native")
    torch.testing.assert_close(scores[:, 0, :3], vectors @ vectors.T, rtol=3e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=native)])
@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1e-3, 1.0, 1e14]), st.sampled_from([1, 5, 384]))
def test_codes_are_within_half_a_step_of_what_they_stand_for(backend, seed, size, dim):
    vectors = size * torch.randn(4, dim, generator=torch.Generator().manual_seed(seed))
    codes, scales = encode_rows(vectors, backend=backend)
    errors = (vectors.double() - codes.double() * scales.double()[:, None]).abs()
    assert (errors <= 0.502 * scales.double()[:, None]).all()
    assert (codes.double().norm(dim=1) <= MAX_CODE_NORM).all()


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=native)])
def test_a_row_of_zeros_is_coded_as_such(backend):
    codes, scales = encode_rows(torch.zeros(2, 8), backend=backend)
    assert not codes.any() and not scales.any()


@native
@pytest.mark.parametrize("dim", [1, 8, 15, 384])
def test_native_dots_equal_the_reference_and_equal_rows_score_equally(dim):
    drawn = torch.Generator().manual_seed(dim)
    rows, query = torch.randn(300, dim, generator=drawn), torch.randn(dim, generator=drawn)
    rows[1::2] = rows[0]
    indices = torch.randperm(300, generator=drawn)
    queries, owners = torch.stack([-query, query]), torch.ones(300, dtype=torch.long)
    owners[::3] = 0
    found = row_dots(queries, owners, rows, indices, backend="native")
    torch.testing.assert_close(found, row_dots(queries, owners, rows, indices, backend="torch"), rtol=1e-5, atol=1e-4)
    same = (indices % 2 == 1) | (indices == 0)
    assert len(found[same & (owners == 1)].unique()) == len(found[same & (owners == 0)].unique()) == 1


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    queries, rows = encode_rows(torch.ones(2, 8)), encode_rows(torch.ones(4, 8))
    wide = CodedRows(torch.ones(1, 4097, dtype=torch.int16), torch.ones(1))
    for bad in (
        (CodedRows(queries.codes.float(), queries.scales), rows),
        (queries, CodedRows(rows.codes, rows.scales.half())),
        (queries, CodedRows(rows.codes, rows.scales[:3])),
        (queries, encode_rows(torch.ones(4, 9))),
        (queries, rows, torch.ones(3, dtype=torch.bool)),
        (wide, wide),
        (CodedRows(torch.ones(8, 2, dtype=torch.int16).T, queries.scales), rows),
    ):
        with pytest.raises(ValueError, match="row_scan: queries"):
            row_scan(*bad)
    query, full, one = torch.ones(1, 8), torch.ones(4, 8), torch.tensor([0])
    for bad in (
        (torch.ones(1, 7), one, full, one),
        (query, one, full, one.int()),
        (query, torch.tensor([0, 0]), full, one),
    ):
        with pytest.raises(ValueError, match="row_dots: queries"):
            row_dots(*bad)
    for vectors in (torch.ones(8), torch.ones(2, 8).half(), torch.ones(1, 4097), torch.ones(8, 2).T):
        with pytest.raises(ValueError, match="encode_rows:"):
            encode_rows(vectors)
