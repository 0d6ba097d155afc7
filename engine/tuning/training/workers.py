"""Several processes that train one adapter: each computes a share of a step, and all take the same step."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Workers:
    """This process, number `rank` of `size`. Where there are others, torch.distributed's process group joins them.

    All hold the whole data, the same weights and the same optimizer state; only the first writes files and measures
    the task's metric.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> range:
        """The run of places whose `lengths` in tokens are this process's part of the sum; empty where there are few."""
        ends = list(accumulate(lengths))
        # An item belongs to the process in whose part its middle lies.
        owners = [
            min(int((end - length / 2) * self.size / ends[-1]), self.size - 1)
            for end, length in zip(ends, lengths, strict=True)
        ]
        return range(bisect_left(owners, self.rank), bisect_right(owners, self.rank))

    def add(self, values: Sequence[float]) -> list[float]:
        """The sums, place by place, of what all processes hold."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        added: list[float] = sums.tolist()
        return added

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the sum of all processes' own; one that has none counts as zeros."""
        if self.size == 1:
            return
        wanted = list(parameters)
        # One message for all: an adapter has hundreds of small matrices.
        flat = torch.cat([_gradient(parameter).flatten() for parameter in wanted])
        dist.all_reduce(flat)
        for parameter, part in zip(wanted, torch.split(flat, [each.numel() for each in wanted]), strict=True):
            parameter.grad = part.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
