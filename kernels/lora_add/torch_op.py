"""`lora_add` in torch: one pair of products over all slots for rows that decode, one a run for prompts."""

from __future__ import annotations

import torch
from torch import Tensor


def lora_add_torch(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, mask: Tensor | None, runs: tuple[tuple[int, int, int, int], ...]
) -> None:
    """See `lora_add`. `a` [S, P * R, in] and `b` [S, P * R, out], zero off the blocks of a part.

    `mask` [T', S] is 1 at the slot of each of the first T' rows; `runs` are those after them.
    """
    slots, width, inputs = a.shape
    if mask is not None:
        rows = len(mask)
        inner = x[:rows] @ a.view(slots * width, inputs).T  # [T', S * P * R]
        inner.view(rows, slots, width).mul_(mask[:, :, None])
        out[:rows].addmm_(inner, b.view(slots * width, -1))
    for start, stop, slot, _ in runs:
        out[start:stop].addmm_(x[start:stop] @ a[slot].T, b[slot])


def slot_mask(runs: tuple[tuple[int, int, int, int], ...], num_slots: int, dtype: torch.dtype, device: str) -> Tensor:
    """[T', S] with a 1 at each row's slot and none in rows without one; T' is where the last run stops."""
    mask = torch.zeros((runs[-1][1], num_slots), dtype=dtype)
    for start, stop, slot, _ in runs:
        mask[start:stop, slot] = 1
    return mask.to(device)
