"""How the token of each row is drawn, where a recorded step looks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.sampling import sample

_WHOLE, _REAL = 3, 3  # columns of int64 and of float32


class Draw(NamedTuple):
    """One row's settings, as `kernels.sampling` takes them; `seed` and `position` are int64."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int


NOBODYS_DRAW = Draw(0.0, 0, 1.0, 0.0, 0, 0)


class DrawBuffers:
    """Room for the settings of up to `max_rows` rows. One thread uses it."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._rows = max_rows
        is_cuda = device.type == "cuda"
        size = (2 * _WHOLE + _REAL) * max_rows  # in words of 32 bits: one copy brings all
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda)
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        whole, real = self._columns(self._host)
        self._whole, self._real = whole.numpy(), real.numpy()
        new_event: Any = torch.cuda.Event
        self._copied: Any = new_event() if is_cuda else None

    def write(self, draws: Sequence[Draw], size: int) -> None:
        """Bring a step's settings over; rows from len(draws) up to `size` are nobody's, and take their best token."""
        if self._copied is not None:
            self._copied.synchronize()  # of the step before, so it has long been
        count = len(draws)
        if count:
            self._whole[:, :count] = [
                [min(each.top_k, self._vocab_size) for each in draws],
                [each.seed for each in draws],
                [each.position for each in draws],
            ]
            self._real[:, :count] = [
                [each.temperature for each in draws],
                [each.top_p for each in draws],
                [each.min_p for each in draws],
            ]
        self._real[0, count:size] = 0
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def sample(self, logits: Tensor) -> Tensor:
        """Each row's token [R] int64 by the settings that were written, -1 where its logits [R, V] are no numbers."""
        whole, real = self._columns(self._device)
        top_k, seed, position = whole[:, : len(logits)]
        temperature, top_p, min_p = real[:, : len(logits)]
        return sample(logits, temperature, top_k, top_p, min_p, seed, position, is_checked=False)

    def _columns(self, words: Tensor) -> tuple[Tensor, Tensor]:
        split = 2 * _WHOLE * self._rows
        whole = words[:split].view(torch.int64).view(_WHOLE, self._rows)
        return whole, words[split:].view(torch.float32).view(_REAL, self._rows)
