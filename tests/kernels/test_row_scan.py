"""Scores of half-precision rows, against torch in float32."""

from __future__ import annotations

import pytest
import torch

from kernels.native import absence
from kernels.row_scan import BLOCK_ROWS, row_dots, row_scan

native = pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")


@native
@pytest.mark.parametrize("num_rows", [1, 3, 63, 64, 65, 257])
@pytest.mark.parametrize(("num_queries", "dim"), [(1, 384), (2, 7), (3, 16), (4, 33), (32, 64)])
@pytest.mark.parametrize("has_mask", [False, True])
def test_native_scores_equal_the_reference(num_rows, num_queries, dim, has_mask):
    drawn = torch.Generator().manual_seed(num_rows * dim)
    queries = torch.randn(num_queries, dim, generator=drawn)
    rows = torch.randn(num_rows, dim, generator=drawn).half()
    allowed = torch.rand(num_rows, generator=drawn) < 0.5 if has_mask else None
    scores, maxima = row_scan(queries, rows, allowed, backend="native")
    expected, expected_maxima = row_scan(queries, rows, allowed, backend="torch")
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(maxima, expected_maxima, rtol=1e-5, atol=1e-4)
    assert maxima.shape == (num_queries, -(-num_rows // BLOCK_ROWS))


@native
def test_native_scan_lets_infinite_rows_score_infinite_and_keeps_the_others():
    rows = torch.ones(5, 24).half()
    rows[3] = torch.inf
    scores, _ = row_scan(torch.ones(1, 24), rows, backend="native")
    assert scores[0].tolist() == [24.0, 24.0, 24.0, float("inf"), 24.0]


@native
@pytest.mark.parametrize("dim", [1, 8, 15, 384])
def test_native_dots_equal_the_reference_and_equal_rows_score_equally(dim):
    drawn = torch.Generator().manual_seed(dim)
    rows, query = torch.randn(300, dim, generator=drawn), torch.randn(dim, generator=drawn)
    rows[1::2] = rows[0]
    indices = torch.randperm(300, generator=drawn)
    found = row_dots(query, rows, indices, backend="native")
    torch.testing.assert_close(found, row_dots(query, rows, indices, backend="torch"), rtol=1e-5, atol=1e-4)
    assert len(found[(indices % 2 == 1) | (indices == 0)].unique()) == 1


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    queries, rows = torch.ones(2, 8), torch.ones(4, 8).half()
    for bad in (
        (queries.half(), rows),
        (queries, rows.float()),
        (queries, torch.ones(4, 9).half()),
        (queries, rows, torch.ones(3, dtype=torch.bool)),
        (torch.ones(1, 4097), torch.ones(1, 4097).half()),
        (torch.ones(8, 2).T, rows),
    ):
        with pytest.raises(ValueError, match="row_scan: queries"):
            row_scan(*bad)
    with pytest.raises(ValueError, match="row_dots: query"):
        row_dots(torch.ones(7), rows.float(), torch.tensor([0]))
    with pytest.raises(ValueError, match="row_dots: query"):
        row_dots(torch.ones(8), rows.float(), torch.tensor([0], dtype=torch.int32))
