"""Penalties of a whole step: as one token after the other would be changed, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import NEEDS_TRITON, TORCH_AND_TRITON, assert_earned
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from kernels.penalise import penalise
from kernels.penalise.reference import penalise_reference

BACKENDS = ["torch", pytest.param("triton", marks=NEEDS_TRITON)]


def made_seen(num_rows: int, width: int, most: int) -> Tensor:
    """Some tokens of each row, none of some rows, rows in no order, and places that nobody uses."""
    random = torch.Generator().manual_seed(width)
    columns = [torch.tensor([[-1, -1], [0, width - 1], [3, 0]])]
    for row in reversed(range(num_rows)):
        tokens = torch.randperm(width, generator=random)[: int(torch.randint(most, (1,), generator=random))]
        counts = torch.randint(4, tokens.shape, generator=random)
        columns.append(torch.stack([torch.full_like(tokens, row), tokens, counts]))
    return torch.cat(columns, 1).int()


def made_strengths(num_rows: int) -> Tensor:
    repetition = torch.tensor([[1.0, 1.3, 0.7][row % 3] for row in range(num_rows)])
    presence = torch.tensor([[0.0, 0.5, -1.5, 2.0][row % 4] for row in range(num_rows)])
    frequency = torch.tensor([[0.25, 0.0, -0.3, 0.1, 1.0][row % 5] for row in range(num_rows)])
    return torch.stack([repetition, presence, frequency])


@pytest.mark.parametrize(("backend", "dtype"), TORCH_AND_TRITON)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 7), (13, 1009)])
def test_seen_tokens_change_as_one_after_the_other_would_and_no_other_does(backend, dtype, num_rows, width):
    logits = 3 * torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen, strengths = made_seen(num_rows, width, 400), made_strengths(num_rows)
    exact = penalise_reference(logits, seen, strengths)
    ours = logits.clone()
    penalise(ours, seen, strengths, backend=backend)
    assert_earned(ours, exact.float(), exact.to(dtype).float())
    is_changed = exact != logits.double()
    assert torch.equal(ours[~is_changed], logits[~is_changed])


@pytest.mark.parametrize("backend", BACKENDS)
def test_repetition_is_that_of_transformers(backend):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    said = torch.tensor([[4, 4, 9], [0, 49, 9]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(said, logits.clone())
    seen = torch.tensor([[0, 0, 1, 1, 1], [4, 9, 0, 49, 9], [2, 0, 1, 1, 1]], dtype=torch.int32)
    penalise(logits, seen, torch.tensor([[1.7, 1.7], [0.0, 0.0], [0.0, 0.0]]), backend=backend)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_tokens_stay_masked_and_nothing_seen_changes_nothing(backend):
    logits = torch.full((1, 5), float("-inf"))
    penalise(logits, torch.tensor([[0], [2], [1]], dtype=torch.int32), torch.ones(3, 1), backend=backend)
    penalise(logits, torch.zeros(3, 0, dtype=torch.int32), torch.ones(3, 1), backend=backend)
    assert logits.tolist() == [[float("-inf")] * 5]


def test_what_does_not_fit_is_refused_and_named():
    logits, seen, strengths = torch.zeros(2, 5), torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 2)
    for bad in (
        (logits.int(), seen, strengths),
        (logits.T.contiguous().T, seen, strengths),
        (logits, seen.long(), strengths),
        (logits, seen[:2], strengths),
        (logits, seen, strengths[:, :1].contiguous()),
    ):
        with pytest.raises(ValueError, match=r"penalise: logits .* \[3, E\] int32"):
            penalise(*bad)
