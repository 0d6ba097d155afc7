"""Penalties on a GPU: a thread for each seen token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def penalise_triton(logits: Tensor, seen: Tensor, strengths: Tensor) -> None:
    """See `penalise`."""
    count = seen.shape[1]
    if count:
        _penalise[(triton.cdiv(count, _BLOCK),)](logits, seen, strengths, count, *logits.shape, BLOCK=_BLOCK)


@triton.jit(do_not_specialize=["num_seen", "num_rows"])
def _penalise(logits, seen, strengths, num_seen, num_rows, width, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(seen + place, place < num_seen, -1)
    is_seen = row >= 0
    token = tl.load(seen + num_seen + place, is_seen, 0)
    count = tl.load(seen + 2 * num_seen + place, is_seen, 0)
    repetition = tl.load(strengths + row, is_seen, 1.0)
    presence = tl.load(strengths + num_rows + row, is_seen, 0.0)
    frequency = tl.load(strengths + 2 * num_rows + row, is_seen, 0.0)
    target = logits + row.to(tl.int64) * width + token
    held = tl.load(target, is_seen, 0.0)
    value = held.to(tl.float32)
    value = tl.where(value > 0, value / repetition, value * repetition)
    value -= tl.where(count > 0, presence + frequency * count.to(tl.float32), 0.0)
    tl.store(target, value.to(held.dtype), is_seen)
