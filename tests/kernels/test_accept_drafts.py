"""Right drafts: as a loop over them finds, whatever the requests' lengths."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import NEEDS_TRITON

from kernels.accept_drafts import accept_drafts
from kernels.accept_drafts.reference import accept_drafts_reference

BACKENDS = ["torch", pytest.param("triton", marks=NEEDS_TRITON)]


def check(backend: str, drawn: list[int], drafts: list[int], counts: list[int]) -> list[int]:
    starts = list(accumulate(counts, initial=0))
    accepted = accept_drafts(*(torch.tensor(each) for each in (drawn, drafts, starts)), backend=backend)
    assert accepted.dtype == torch.int64
    assert accepted.tolist() == accept_drafts_reference(drawn, drafts, starts)
    return accepted.tolist()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batch_is_accepted_as_far_as_a_loop_would(backend, data):
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    tokens = st.lists(st.integers(0, 1), min_size=sum(counts), max_size=sum(counts))
    check(backend, data.draw(tokens), data.draw(tokens), counts)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [0, 31, 32, 33, 69, 70])
def test_more_drafts_than_a_program_looks_at_together_are_read_to_the_first_wrong_one(backend, wrong):
    drawn = list(range(71))
    drafts = [token + (token == wrong) for token in drawn]
    assert check(backend, [*drawn, 9], [*drafts, 9], [71, 1]) == [wrong + 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_last_row_of_a_request_has_no_draft_even_where_one_would_be_right(backend):
    assert check(backend, [-1, -1, -1], [-1, -1, -1], [1, 2]) == [1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_request_has_no_result(backend):
    nothing = torch.zeros(0, dtype=torch.int64)
    assert accept_drafts(nothing, nothing, torch.zeros(1, dtype=torch.int64), backend=backend).shape == (0,)


def test_what_does_not_fit_is_refused_and_named():
    ids, starts = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 3])
    for bad in ((ids, ids[:2], starts), (ids.int(), ids, starts), (ids, ids, starts[:0]), (ids[None], ids, starts)):
        with pytest.raises(ValueError, match=r"accept_drafts: token_ids, drafts, starts .* int64 \[R\]"):
            accept_drafts(*bad)
