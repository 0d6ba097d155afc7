"""Right drafts on a GPU: a program for each request."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Drafts are few; a request with more takes several rounds.
_BLOCK = 32


def accept_drafts_triton(token_ids: Tensor, drafts: Tensor, starts: Tensor) -> Tensor:
    """See `accept_drafts`."""
    num_accepted = torch.empty(len(starts) - 1, dtype=torch.int64, device=starts.device)
    _accept[(len(num_accepted),)](num_accepted, token_ids, drafts, starts, BLOCK=_BLOCK, num_warps=1)
    return num_accepted


@triton.jit
def _accept(num_accepted, token_ids, drafts, starts, BLOCK: tl.constexpr):
    request = tl.program_id(0)
    start = tl.load(starts + request)
    last = tl.load(starts + request + 1) - 1
    end = last
    for first in range(start, last, BLOCK):
        row = first + tl.arange(0, BLOCK)
        is_draft = row < last
        drawn = tl.load(token_ids + row, is_draft, 0)
        is_right = drawn == tl.load(drafts + row, is_draft, 0)
        end = tl.minimum(end, tl.min(tl.where(is_draft & (is_right == 0), row, last), 0))
    tl.store(num_accepted + request, end + 1 - start)
