"""Right drafts, request by request: the definition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def accept_drafts_reference(token_ids: Sequence[int], drafts: Sequence[int], starts: Sequence[int]) -> list[int]:
    """See `accept_drafts`."""
    accepted = []
    for start, stop in pairwise(starts):
        last = start
        while last + 1 < stop and token_ids[last] == drafts[last]:
            last += 1
        accepted.append(last + 1 - start)
    return accepted
