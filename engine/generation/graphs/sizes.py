"""Which sizes of step are recorded."""

from __future__ import annotations

_SMALL = (1, 2, 4, 8)
_MULTIPLE = 8
# Above that many tokens the device has enough to do, and drafts are few.
MAX_TOKENS = 256


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Ascending: 1, 2, 4, 8, 16, 24 and so on, up to one token for each of `max_num_seqs` answers or their drafts.

    A few answers with drafts are as many tokens as many without: the largest size is at least 64.
    """
    largest = min(max(-(-max_num_seqs // _MULTIPLE) * _MULTIPLE, 64), MAX_TOKENS)
    return (*_SMALL, *range(2 * _MULTIPLE, largest + 1, _MULTIPLE))


def size_for(num_tokens: int, sizes: tuple[int, ...]) -> int | None:
    """The smallest of `sizes`, ascending, that holds so many tokens; None where none does."""
    return next((size for size in sizes if size >= num_tokens), None)
