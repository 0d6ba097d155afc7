"""What the tests of sampling share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.sampling import sample
from kernels.sampling.reference import sample_reference

NO_TOKEN = float("-inf")


def parameters(settings_: tuple[float, int, float, float], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    temperature, top_k, top_p, min_p = settings_
    return (
        torch.full((count,), temperature),
        torch.full((count,), top_k),
        torch.full((count,), top_p),
        torch.full((count,), min_p),
    )


def keys(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Seeds of any bits, and positions."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=random), torch.randint(
        5000, (count,), generator=random
    )


def chi_square_passes(observed: Tensor, expected: Tensor) -> bool:
    """Nothing where nothing may be, and not 4.5 deviations above the mean of the statistic: once in 10^4."""
    likely = expected > 5
    statistic = float(((observed - expected)[likely] ** 2 / expected[likely]).sum())
    degrees = int(likely.sum()) - 1
    return bool(observed[expected == 0].sum() == 0) and statistic <= degrees + 4.5 * (2 * max(degrees, 1)) ** 0.5


def greedy(count: int) -> tuple[Tensor, ...]:
    return *parameters((0.0, 0, 1.0, 0.0), count), *keys(count)


class Batch:
    """Rows of any settings: flat and peaked ones, ties, masked tokens, limits within and beyond the vocabulary."""

    def __init__(self, data: st.DataObject, widths: list[int]) -> None:
        count, width = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(widths))
        number = data.draw(st.integers(0, 10_000))
        random = torch.Generator().manual_seed(number)
        # Almost flat: the winner is often left out, and the row draws again.
        self.logits = torch.randn(count, width, generator=random) * data.draw(st.sampled_from([0.01, 1.0, 8.0]))
        if data.draw(st.booleans()):
            self.logits = self.logits.round()
        if data.draw(st.booleans()):
            self.logits[:, torch.rand(width, generator=random) < 0.4] = NO_TOKEN
            self.logits[:, width // 2] = 0.0
        rows = [
            (
                data.draw(st.sampled_from([0.0, 1e-40, 0.5, 1.0, 2.0])),
                data.draw(st.sampled_from([0, 1, 5, 280, 5000])),
                data.draw(st.sampled_from([1e-9, 0.3, 0.95, 1.0])),
                data.draw(st.sampled_from([0.0, 0.2, 1.0])),
            )
            for _ in range(count)
        ]
        self.columns = [*(torch.tensor(column) for column in zip(*rows, strict=True)), *keys(count, number)]

    def check(self, **options) -> None:
        drawn = sample(self.logits, *self.columns, **options)
        assert drawn.tolist() == sample_reference(self.logits, *self.columns).tolist()
