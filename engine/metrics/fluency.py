"""How an answer reads, whatever it says: whether it repeats itself, and how varied its words are."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"\w+")
_REPEATED = 4


def repetition(text: str) -> float:
    """Share of the runs of four words that stood in the text before; 0 where it has fewer words.

    (Called rep-4 by Welleck et al., arXiv:1908.04319.)
    """
    runs = _runs(text, _REPEATED)
    return 1 - len({*runs}) / len(runs) if runs else 0.0


def distinct_2(texts: Iterable[str]) -> float | None:
    """Pairs of neighbouring words, each counted once, over all of them (Li et al., arXiv:1510.03055); None without."""
    pairs = [pair for text in texts for pair in _runs(text, 2)]
    return len({*pairs}) / len(pairs) if pairs else None


def _runs(text: str, length: int) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return list(zip(*(words[place:] for place in range(length)), strict=False))
