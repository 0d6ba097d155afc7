"""Which passage backs which sentence of an answer, by overlap of words: a small model writes no markers of its own.

The rule, for each sentence of the answer (list items and lines count as sentences):
1. Its content words are its words without English stop words, lower-cased and lightly stemmed; Chinese and
   Japanese text counts in pairs of characters. Fewer than MIN_WORDS of them: no citation ("Yes.", "I do not know.").
2. A passage (with title and heading) backs it if it holds at least MIN_SHARE of the content words and every number
   among them, and at least MIN_PAIRS of its pairs of neighbouring content words stand at most two apart there.
3. Of several the one with the largest share is cited, then the one with most pairs, then the first.

Overlap is evidence of copying, not of truth: a negated sentence still overlaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.values import Passage

MIN_WORDS = 3
MIN_SHARE = 0.6
MIN_PAIRS = 1

STOP_WORDS = frozenset(
    """
    a about above after again all also an and any are as at be because been before being below between both but by
    can cannot could did do does doing don down during each few for from further had has have having he her here
    hers him his how however i if in into is it its itself just may me might more most must my no nor not now of
    off on once only or other our ours out over own same shall she should so some such than that the their them
    then there these they this those through to too under until up use used using very was we were what when where
    whether which while who whom why will with would you your yours t s re ve ll answer know passage passages
    question say sorry yes
    """.split()
)
_CJK = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?![.!?])[\"')\]]*(?=\s)|[。！？]+[」』]?|$)", re.MULTILINE)
_LIST_MARK = re.compile(r"(?:[-*•>#]+|\d+[.)]|\[\d+\])\s+")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|cf|approx|mr|mrs|dr|[a-z])\.$", re.IGNORECASE)
_REFERENCE = re.compile(r"\[\d+\]")
_WORD = re.compile(rf"[{_CJK}]+|(?:(?![{_CJK}])[^\W_])+")


@dataclass(frozen=True, slots=True)
class Citation:
    """Characters `start:end` of the answer overlap with `passages[passage]`; `score` is the share of content words."""

    start: int
    end: int
    passage: int
    score: float


def cite(answer: str, passages: Sequence[Passage]) -> list[Citation]:
    """Citations in the order of the answer, at most one per sentence; empty when nothing overlaps enough."""
    sources: list[tuple[frozenset[str], frozenset[tuple[str, str]]]] = []
    for passage in passages:
        held = _content_words(f"{passage.title}\n{passage.heading}\n{passage.text}")
        sources.append((frozenset(held), _pairs(held, 1) | _pairs(held, 2)))
    citations = []
    for start, end in _sentences(answer):
        ordered = _content_words(_REFERENCE.sub(" ", answer[start:end]))
        words, pairs = set(ordered), _pairs(ordered, 1)
        if len(words) < MIN_WORDS:
            continue
        numbers = {word for word in words if word[0].isdigit()}
        backing = [
            (len(words & known) / len(words), len(pairs & known_pairs), -index)
            for index, (known, known_pairs) in enumerate(sources)
            if numbers <= known
        ]
        share, num_pairs, negative_index = max(backing, default=(0.0, 0, 0))
        if share >= MIN_SHARE and num_pairs >= MIN_PAIRS:
            citations.append(Citation(start, end, -negative_index, share))
    return citations


def supported_share(answer: str, texts: Sequence[str]) -> float | None:
    """Share of the answer's different content words that stand in any of `texts`; None of an answer without any."""
    words = {*_content_words(_REFERENCE.sub(" ", answer))}
    return len(words & {word for text in texts for word in _content_words(text)}) / len(words) if words else None


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Offsets of sentences, list marks and surrounding white space left out."""
    start = None
    for match in _SENTENCE.finditer(text):
        if start is None:
            mark = _LIST_MARK.match(text, match.start())
            start = mark.end() if mark and mark.end() < match.end() else match.start()
        is_line_end = match.end() == len(text) or text[match.end()] == "\n"
        if not is_line_end and (match.end() <= start or _ABBREVIATION.search(text[start : match.end()])):
            continue
        yield start, start + len(text[start : match.end()].rstrip())
        start = None


def _content_words(text: str) -> list[str]:
    words: list[str] = []
    for word in _WORD.findall(text.lower()):
        if "\u3041" <= word[0] <= "\u9fff":
            words += [word[i : i + 2] for i in range(max(len(word) - 1, 1))]
        elif word not in STOP_WORDS:
            words.append(_stem(word))
    return words


def _pairs(words: Sequence[str], distance: int) -> frozenset[tuple[str, str]]:
    """Pairs of words at this distance, in alphabetical order: "volume snapshots" is "snapshots of a volume"."""
    return frozenset((a, b) if a < b else (b, a) for a, b in zip(words, words[distance:], strict=False))


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    """Fold inflections that an answer changes: stops, stopped and stopping; policy and policies; store and stores."""
    if len(word) <= 3 or word[0].isdigit():
        return word
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if word.endswith("ie"):
        return word[:-1]
    return word[:-1] + "i" if word.endswith("y") else word.removesuffix("e")
