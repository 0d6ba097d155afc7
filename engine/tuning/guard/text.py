"""What two texts are compared by."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

TEMPLATE_SHARE = 0.9
_APOSTROPHES = re.compile("['’`]")
# Punctuation at the edge of a word; inside (1.5, a-b) it carries meaning, and so do signs such as - + % and $.
_EDGE_PUNCTUATION = re.compile(r"(?<!\w)[.,;:!?\"()\[\]…“”]+|[.,;:!?\"()\[\]…“”]+(?!\w)")


def normalise(text: str) -> str:
    """Without case, apostrophes, punctuation around words and runs of blanks; in NFKC."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = " ".join(_EDGE_PUNCTUATION.sub(" ", _APOSTROPHES.sub("", folded)).split())
    return plain or " ".join(folded.split())


class Template:
    """The whole lines that nearly all texts of a file begin and end with: they say how to answer, not what is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        lines = [text.strip().split("\n") for text in texts]
        self._head = _shared(lines)
        self._tail = _shared([each[::-1] for each in lines])

    def cut(self, text: str) -> str:
        """`text` without those; a text that is no more than those stays as it is."""
        lines = text.strip().split("\n")
        rest = lines[_num_equal(lines, self._head) :]
        return "\n".join(rest[: len(rest) - _num_equal(rest[::-1], self._tail)]).strip() or text


def _num_equal(lines: Sequence[str], others: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lines, others, strict=False)))


def _shared(texts: Sequence[Sequence[str]]) -> list[str]:
    """The longest beginning, in lines, that TEMPLATE_SHARE of the texts have."""
    shared: list[str] = []
    # The last line of a text is its own, or else equal texts would vanish into the template.
    having = [lines for lines in texts if len(lines) > 1]
    while having:
        depth = len(shared)
        line, count = Counter(lines[depth] for lines in having).most_common(1)[0]
        if count < TEMPLATE_SHARE * len(texts):
            break
        shared.append(line)
        having = [lines for lines in having if lines[depth] == line and len(lines) > depth + 2]
    return shared
