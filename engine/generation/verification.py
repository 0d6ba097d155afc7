"""Which drafted tokens are right: those that were drawn at their places anyway."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from kernels.accept_drafts import accept_drafts


def num_right(token_ids: Sequence[int], draft: Sequence[int]) -> int:
    """How many of a request's drafts are what was drawn in its rows, before the first that is not."""
    return next((n for n, token_id in enumerate(draft) if token_ids[n] != token_id), len(draft))


def verify(drawn: Tensor, drafts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Ids of all rows, and how many drafts of each request are right, by one read from the device.

    Args:
        drawn: [R] int64; 1 + len(drafts[i]) rows of request i, one request after another.
    """
    num_rows = len(drawn)
    following = [token_id for draft in drafts for token_id in (*draft, -1)]
    starts = accumulate((len(draft) + 1 for draft in drafts), initial=0)
    numbers = torch.tensor([*following, *starts]).to(drawn.device)
    said = accept_drafts(drawn, numbers[:num_rows], numbers[num_rows:])
    read: list[int] = torch.cat([drawn, said - 1]).tolist()
    return read[:num_rows], read[num_rows:]
