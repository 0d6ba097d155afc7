"""One timed operation on one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

# Sums in another order, as a share of the largest result.
_ORDER = 1e-5


class Results(NamedTuple):
    """Of the same inputs: ours, plain torch's in the same dtype, and the definition's in float32."""

    ours: Tensor
    eager: Tensor
    exact: Tensor


@dataclass(frozen=True)
class Case:
    """`systems` are ours and peers by name; `results` computes what is compared before anything is timed."""

    op: str
    shape: str
    systems: dict[str, Callable[[], object]]
    results: Callable[[], Results]
    num_bytes: int  # least that is read and written
    flops: int
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`<op> <shape>`."""
        return f"{self.op} {self.shape}"

    def fault(self) -> str | None:
        """What is wrong with our result: its error exceeds twice that of plain torch in the same dtype."""
        ours, eager, exact = (each.float() for each in self.results())
        error, allowed = (ours - exact).abs().max(), 2 * (eager - exact).abs().max() + _ORDER * exact.abs().max()
        # NaN is wrong too.
        return None if error <= allowed else f"error {float(error):.3g}, allowed {float(allowed):.3g}"


class Draw:
    """Random tensors of one dtype on one device, the same each time."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._random = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self.device, self.dtype)
