"""Drafts are verified alike on the host and on the device."""

from __future__ import annotations

import pytest
import torch

from engine.generation.verification import num_right, verify


@pytest.mark.parametrize(
    ("drawn", "drafts", "right"),
    [
        ([5], [[]], [0]),
        ([5, 6, 7], [[5, 6]], [2]),
        ([5, 6, 7], [[5, 7]], [1]),
        ([5, 6, 7], [[4, 6]], [0]),
        ([5, 6, 7, 1, 2, 3], [[5], [], [1, 9]], [1, 0, 1]),
        ([3, -1], [[3]], [1]),  # the second row has no answer: it is told by its id
    ],
)
def test_drafts_are_right_up_to_the_first_that_was_not_drawn(drawn, drafts, right):
    assert verify(torch.tensor(drawn), drafts) == (drawn, right)
    start = 0
    for draft, expected in zip(drafts, right, strict=True):
        assert num_right(drawn[start : start + len(draft) + 1], draft) == expected
        start += len(draft) + 1
