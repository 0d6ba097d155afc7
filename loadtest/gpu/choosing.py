"""The operations that choose tokens, on the device against their definitions on the CPU."""

from __future__ import annotations

from functools import partial

import torch

from kernels.accept_drafts import accept_drafts
from kernels.accept_drafts.reference import accept_drafts_reference
from kernels.dispatch import Backend
from kernels.penalise import penalise
from kernels.penalise.reference import penalise_reference
from kernels.sampling import sample
from kernels.sampling.reference import sample_reference
from loadtest.gpu.record import Record

# In float32, as a share of the largest logit.
_ROUNDING = 1e-5
_NUM_ROWS = 64


def check_choosing(record: Record, device: str, backend: Backend, *, vocabulary: int) -> None:
    """Each that is wrong is named; `device` is torch's."""
    for name, check in (
        ("operation sampling", _check_sampling),
        ("operation penalise", _check_penalties),
        ("operation accept_drafts", _check_drafts),
    ):
        record.attempt(name, partial(check, record, name, device, backend, vocabulary))


def _check_sampling(record: Record, name: str, device: str, backend: Backend, vocabulary: int) -> None:
    """Ids as the definition draws them in float64, greedy ones and a row without an answer among them."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(_NUM_ROWS, vocabulary, generator=random) * 2
    logits[5, 3] = float("nan")
    columns = [
        torch.tensor([[0.0, 0.7, 1.0, 1.5][row % 4] for row in range(_NUM_ROWS)]),
        torch.tensor([[0, 0, 50, 200][row // 4 % 4] for row in range(_NUM_ROWS)]),
        torch.tensor([[1.0, 0.9][row // 16 % 2] for row in range(_NUM_ROWS)]),
        torch.tensor([[0.0, 0.05][row // 32 % 2] for row in range(_NUM_ROWS)]),
        torch.randint(-(2**63), 2**63 - 1, (_NUM_ROWS,), generator=random),
        torch.arange(_NUM_ROWS),
    ]
    there = (column.to(device) for column in columns)
    ours = sample(logits.to(device), *there, is_checked=False, backend=backend).cpu()
    equal = int((ours == sample_reference(logits, *columns)).sum())
    words = f"{equal} of {_NUM_ROWS} ids equal to the definition"
    record.check(name, is_right=equal == _NUM_ROWS, words=words)


def _check_penalties(record: Record, name: str, device: str, backend: Backend, vocabulary: int) -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(_NUM_ROWS, vocabulary, generator=random) * 4
    tokens = torch.stack([torch.randperm(vocabulary, generator=random)[:100] for _ in range(_NUM_ROWS)])
    rows = torch.arange(_NUM_ROWS)[:, None].expand_as(tokens)
    counts = torch.randint(3, tokens.shape, generator=random)
    seen = torch.stack([each.flatten() for each in (rows, tokens, counts)]).int()
    strengths = torch.stack([0.5 + torch.rand(_NUM_ROWS, generator=random) for _ in range(3)])
    exact = penalise_reference(logits, seen, strengths)
    ours = logits.to(device)
    penalise(ours, seen.to(device), strengths.to(device), backend=backend)
    error, limit = float((ours.cpu() - exact).abs().max()), _ROUNDING * float(exact.abs().max())
    record.check(name, is_right=error <= limit, words=f"error {error:.3g}, allowed {limit:.3g}")


def _check_drafts(record: Record, name: str, device: str, backend: Backend, vocabulary: int) -> None:
    random = torch.Generator().manual_seed(2)
    counts = torch.randint(1, 80, (_NUM_ROWS,), generator=random)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    drawn = torch.randint(vocabulary, (int(starts[-1]),), generator=random)
    is_wrong = torch.rand(drawn.shape, generator=random) < 0.05
    drafts = drawn + is_wrong.long()
    there = (each.to(device) for each in (drawn, drafts, starts))
    ours = accept_drafts(*there, backend=backend).tolist()
    is_right = ours == accept_drafts_reference(drawn.tolist(), drafts.tolist(), starts.tolist())
    record.check(name, is_right=is_right, words=f"{sum(ours)} tokens of {_NUM_ROWS} requests")
