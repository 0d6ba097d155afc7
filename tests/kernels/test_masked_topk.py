"""Masked search against a full stable sort: scores and ids, ties, masks, few rows and rows that hold nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import NEEDS_TRITON, TORCH_AND_TRITON, assert_earned
from torch import Tensor

from kernels.masked_topk import masked_topk, pack_mask
from kernels.masked_topk.reference import masked_topk_reference
from kernels.masked_topk.select import BLOCK_ROWS, best_keys, pack_keys, search_in_parts, unpack_keys
from kernels.masked_topk.torch_op import unpack_mask

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NO_ROW = float("-inf")
BACKENDS = ["torch", pytest.param("triton", marks=NEEDS_TRITON)]


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Small ones, so that no order of summation changes a score and many scores tie."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def check(queries: Tensor, rows: Tensor, k: int, allowed: Tensor | None, backend: str) -> None:
    """Scores and ids equal the definition's to the last bit; what may not be found holds NaN."""
    expected = masked_topk_reference(queries, rows, k, allowed)
    held = rows.clone()
    if allowed is not None:
        held[~allowed] = float("nan")
    mask = None if allowed is None else pack_mask(allowed)
    scores, ids = masked_topk(queries, held, k, mask, backend=backend)
    assert (scores.dtype, ids.dtype, scores.shape) == (torch.float32, torch.int64, (len(queries), k))
    assert torch.equal(ids, expected[1]) and torch.equal(scores, expected[0])


@pytest.mark.parametrize(("backend", "dtype"), TORCH_AND_TRITON)
@pytest.mark.parametrize("num_queries", [1, 7, 33])
@pytest.mark.parametrize("k", [1, 10, 100, 2048])
def test_scores_and_ids_equal_a_full_stable_sort_where_many_scores_tie(backend, dtype, num_queries, k):
    rows, queries = whole_numbers(1003, 61, seed=0).to(dtype), whole_numbers(num_queries, 61, seed=1).to(dtype)
    allowed = torch.rand(1003, generator=torch.Generator().manual_seed(2)) < 0.6
    check(queries, rows, k, allowed, backend)
    check(queries, rows, k, None, backend)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_shape_and_mask_give_what_a_full_sort_gives(backend, data):
    num_rows = data.draw(st.sampled_from([0, 1, 31, 32, 33, 127, 128, 129, 521]))
    dim = data.draw(st.sampled_from([1, 7, 16, 65, 96]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    seed = data.draw(st.integers(0, 1000))
    allowed = None
    if data.draw(st.booleans()):
        share = data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
        allowed = torch.rand(num_rows, generator=torch.Generator().manual_seed(seed)) < share
    queries = whole_numbers(data.draw(st.sampled_from([0, 1, 5, 17])), dim, seed=seed).to(dtype)
    rows = whole_numbers(num_rows, dim, seed=seed + 1).to(dtype)
    check(queries, rows, data.draw(st.sampled_from([1, 3, 64, 600])), allowed, backend)


@pytest.mark.parametrize(("backend", "dtype"), TORCH_AND_TRITON)
def test_scores_of_any_numbers_stay_within_the_earned_tolerance(backend, dtype):
    drawn = torch.Generator().manual_seed(3)
    queries, rows = (torch.randn(n, 384, generator=drawn).to(dtype) for n in (5, 700))
    scores, ids = masked_topk(queries, rows, 50, backend=backend)
    exact = queries.float() @ rows.float().T
    assert_earned(scores, exact.topk(50).values, (queries @ rows.T).float().topk(50).values)
    assert_earned(scores, exact.gather(1, ids), (queries @ rows.T).gather(1, ids))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_are_found_in_the_order_of_their_ids_across_blocks_and_the_cut(backend):
    rows = torch.ones(5 * BLOCK_ROWS + 3, 8)
    allowed = torch.ones(len(rows), dtype=torch.bool)
    allowed[[0, 4, BLOCK_ROWS]] = False
    found = masked_topk(torch.ones(2, 8), rows, 200, pack_mask(allowed), backend=backend)[1]
    assert found.tolist() == [allowed.nonzero().flatten()[:200].tolist()] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_and_minus_zero_tie(backend):
    rows = torch.tensor([[-0.0], [0.0], [-0.0]])
    for query in (1.0, -1.0):
        assert masked_topk(torch.tensor([[query]]), rows, 3, backend=backend)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_rows_than_k_are_filled_up_and_no_row_finds_nothing(backend):
    queries, rows = whole_numbers(3, 16, seed=0), whole_numbers(40, 16, seed=1)
    allowed = torch.zeros(40, dtype=torch.bool)
    scores, ids = masked_topk(queries, rows, 5, pack_mask(allowed), backend=backend)
    assert (scores == NO_ROW).all() and (ids == -1).all()
    allowed[[33, 7]] = True
    scores, ids = masked_topk(queries, rows, 5, pack_mask(allowed), backend=backend)
    assert [set(row) for row in ids[:, :2].tolist()] == [{7, 33}] * 3
    assert (scores[:, 2:] == NO_ROW).all() and (ids[:, 2:] == -1).all()
    scores, ids = masked_topk(queries, rows[:0], 5, backend=backend)
    assert (scores == NO_ROW).all() and (ids == -1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 5, 40]), st.sampled_from([1, 300, 4000]))
def test_number_of_scores_held_at_once_changes_nothing(seed, k, max_scores):
    exact = whole_numbers(3, 1000, seed=seed)

    def score_rows(first: int, stop: int) -> tuple[Tensor, Tensor]:
        part = torch.nn.functional.pad(exact[:, first:stop], (0, -(stop - first) % BLOCK_ROWS), value=NO_ROW)
        blocks = part.view(3, -1, BLOCK_ROWS)
        return blocks, blocks.amax(-1)

    scores, ids = search_in_parts(score_rows, 3, 1000, k, exact.device, max_scores)
    expected = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(scores, expected.values[:, :k]) and torch.equal(ids, expected.indices[:, :k])


def test_blocks_that_are_not_among_the_best_are_never_looked_at():
    scores = torch.zeros(1, 4, BLOCK_ROWS)
    scores[0, 2, 5] = 3.0
    scores[0, 1] = float("nan")  # as memory that must not be read
    maxima = torch.tensor([[1.0, -5.0, 3.0, 2.0]])
    found, ids = unpack_keys(best_keys(scores, maxima, 2, 1000))
    assert ids.tolist() == [[1000 + 2 * BLOCK_ROWS + 5, 1000 + 2 * BLOCK_ROWS]] and found.tolist() == [[3.0, 0.0]]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_keys_sort_as_scores_do_and_give_them_back(values):
    scores = torch.tensor(values)
    keys = pack_keys(scores, torch.arange(len(values)))
    assert len(keys.unique()) == len(values)
    order = scores.sort(descending=True, stable=True).indices
    assert keys.sort(descending=True).indices.tolist() == order.tolist()
    found, ids = unpack_keys(keys)
    assert torch.equal(found, scores) and ids.tolist() == list(range(len(values)))


@given(st.lists(st.booleans(), max_size=100))
def test_mask_keeps_the_bit_of_every_row(bits):
    allowed = torch.tensor(bits, dtype=torch.bool)
    mask = pack_mask(allowed)
    assert mask.shape == (-(-len(bits) // 32),) and torch.equal(unpack_mask(mask, len(bits)), allowed)


def test_what_does_not_fit_is_refused_and_named():
    rows, mask = torch.zeros(40, 8), torch.zeros(2, dtype=torch.int32)
    for bad in (
        (torch.zeros(1, 7), rows),
        (torch.zeros(1, 8).half(), rows),
        (torch.zeros(8, 1).T.expand(2, 8), rows),
        (torch.zeros(1, 8), rows.int()),
        (torch.zeros(1, 8), rows, mask[:1]),
        (torch.zeros(1, 8), rows, mask.long()),
    ):
        queries, stored, *masks = bad
        with pytest.raises(ValueError, match=r"masked_topk: queries .* int32 words"):
            masked_topk(queries, stored, 1, *masks)
    with pytest.raises(ValueError, match="k=0 is too small"):
        masked_topk(torch.zeros(1, 8), rows, 0)
    with pytest.raises(RuntimeError, match="masked_topk: backend 'native' is absent: it has no such implementation"):
        masked_topk(torch.zeros(1, 8), rows, 1, backend="native")
    with pytest.raises(ValueError, match=r"pack_mask: \(2,\) torch.int64"):
        pack_mask(torch.zeros(2, dtype=torch.int64))
