"""Memory that nobody wrote, for every test of an operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Whatever torch.empty gives holds NaN, so that an output which is left out shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all() and torch.empty_like(torch.ones(8)).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
