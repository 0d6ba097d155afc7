"""Signals of a question's words alone: microseconds, no model.

Made for English; other languages have their lengths, digits, names and rarity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engine.routing.signals.table import SignalTable

# What is looked at of a question: the time is bounded whatever a client sends.
MAX_CHARS = 2_000
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?。？！]+(?:\s|$)")
_YEAR = re.compile(r"\b(?:1[0-9]|20)\d{2}\b")
_CODE = re.compile(r"\w[._/:@]\w|--\w|[{}<>=`$\\]|\w_\w")
# One of them is in whatever _CODE finds.
_CODE_MARKS = frozenset("._/:@-{}<>=`$\\")
_QUOTED = re.compile(r"[\"“«][^\"”»]+[\"”»]")
_OPENERS = {
    "who": "who whom whose who's",
    "what": "what what's",
    "when": "when when's",
    "where": "where where's",
    "which": "which",
    "why": "why",
    "how": "how how's",
    "yes_no": "is are was were am do does did can could will would should shall may might has have had",
}
# The marks of each first word, and of all others.
_OPENED = {
    word: tuple(float(name == other) for other in _OPENERS)
    for name, words in _OPENERS.items()
    for word in words.split()
}
_NOT_OPENED = (0.0,) * len(_OPENERS)
_TIME = frozenset(
    """
    now today tonight tomorrow yesterday current currently latest newest recent recently last next upcoming ago
    year years month week day season ever still yet anymore
    january february march april june july august september october november december
    """.split()
)
_PERSONAL = frozenset("i me my mine we us our ours i'm i've i'd i'll".split())
_POINTING = frozenset("it its they them their this that these those he him his she her such one ones".split())
# With a content word before it, a pronoun most likely means what that word says.
_FUNCTION_WORDS = _POINTING | frozenset(
    """
    a an the of in on at to for from by with as and or but not no if then so is are was were be been am do does did can
    could will would should shall may might has have had who whom whose what when where which why how there here about
    """.split()
)
_JOINING = frozenset("and or versus vs between both either nor".split())
_SUPERLATIVE = re.compile(r"\b(?:most|least|best|worst|first|\w{2,}(?:iest|[^aeiou]est))\b")
# What every superlative has, since looking for all others takes longest.
_SUPERLATIVE_ENDS = ("est", "most", "least", "worst", "first")
_NOT_SUPERLATIVE = re.compile(
    r"\b(?:interest|request|harvest|forest|protest|contest|honest|invest|suggest|digest|arrest|modest|conquest|"
    r"ernest|everest|budapest|tempest|manifest|midwest|southwest|northwest|infest|chest|crest|quest|guest|wrest|detest|attest|bequest|priest)\b"
)

NAMES = (
    "lexical.tokens",
    "lexical.characters",
    "lexical.sentences",
    *(f"lexical.opens_{name}" for name in _OPENERS),
    "lexical.question_mark",
    "lexical.digits",
    "lexical.year",
    "lexical.time",
    "lexical.superlative",
    "lexical.dangling",
    "lexical.personal",
    "lexical.joining",
    "lexical.name_share",
    "lexical.quoted",
    "lexical.code",
    "lexical.content_share",
    "lexical.unknown_share",
    "lexical.max_idf",
    "lexical.mean_idf",
)


@dataclass(frozen=True, slots=True)
class WordCounts:
    """How many of a knowledge base's `num_documents` texts hold each word (lower case)."""

    num_documents: int
    documents: Mapping[str, int]

    def idf(self, word: str) -> float:
        """ln(1 + (N - n + 0.5) / (n + 0.5)), BM25's inverse document frequency in nats."""
        return self.idf_of(self.documents.get(word, 0))

    def idf_of(self, found: int) -> float:
        """The same of a word that `found` texts hold."""
        return math.log1p((self.num_documents - found + 0.5) / (found + 0.5))


def lexical_signals(
    questions: Sequence[str], words: WordCounts | Sequence[WordCounts | None] | None = None
) -> SignalTable:
    """Counts, shares and 0/1 marks of each question; the last three are NaN without `words`, of all or of each.

    `dangling` is 1 where a pronoun comes before any content word; `name_share` is of words with a capital letter that
    begin no sentence; `unknown_share` is of content words that no document has.
    """
    counts = [words] * len(questions) if words is None or isinstance(words, WordCounts) else words
    rows = [_row(question, counted) for question, counted in zip(questions, counts, strict=True)]
    values = np.array(rows, dtype=np.float64)
    return SignalTable(NAMES, values.reshape(len(questions), len(NAMES)))


def plain_words(question: str) -> list[str]:
    """Words in lower case with straight apostrophes, of the first MAX_CHARS characters."""
    return list(_read(question[:MAX_CHARS]).plain)


def content_words(words: Sequence[str]) -> list[str]:
    """Words that say what a question is about, of `plain_words`."""
    return [word for word in words if word not in _FUNCTION_WORDS]


def distinct_words(question: str) -> tuple[str, ...]:
    """The content words of a question, each once, in their order."""
    return _read(question[:MAX_CHARS]).distinct


@dataclass(frozen=True, slots=True)
class _Words:
    """Words of a text as they are written, in lower case, those with content, and these each once."""

    written: tuple[str, ...]
    plain: tuple[str, ...]
    content: tuple[str, ...]
    distinct: tuple[str, ...]


# Every tier looks at the words of a question; batches are of at most 64.
@lru_cache(maxsize=128)
def _read(text: str) -> _Words:
    written = tuple(_WORD.findall(text))
    plain = [word.lower() for word in written]
    if "’" in text:
        plain = [word.replace("’", "'") for word in plain]
    content = content_words(plain)
    return _Words(written, tuple(plain), tuple(content), tuple(dict.fromkeys(content)))


def _row(question: str, counts: WordCounts | None) -> list[float]:
    text = question[:MAX_CHARS]
    read = _read(text)
    words = read.plain
    lowered = text.lower()
    num = max(1, len(words))
    return [
        len(words),
        len(text),
        max(1, len(_SENTENCE.findall(text))),
        *(_OPENED.get(words[0], _NOT_OPENED) if words else _NOT_OPENED),
        float("?" in text or "？" in text),
        _num_digits(text),
        float(_YEAR.search(text) is not None),
        _num_among(words, _TIME),
        float(_has_superlative(lowered)),
        float(_is_dangling(words)),
        _num_among(words, _PERSONAL),
        _num_among(words, _JOINING),
        _num_names(text, read.written) / num,
        float(_QUOTED.search(text) is not None),
        float(not _CODE_MARKS.isdisjoint(text) and _CODE.search(text) is not None),
        len(read.content) / num,
        *_rarity(read.content, counts),
    ]


def _num_digits(text: str) -> int:
    if text.isascii():
        return len(text) - len(text.encode().translate(None, b"0123456789"))
    return sum(map(str.isdigit, text))


def _num_among(words: Sequence[str], some: frozenset[str]) -> int:
    return 0 if some.isdisjoint(words) else sum(word in some for word in words)


def _has_superlative(lowered: str) -> bool:
    if not any(end in lowered for end in _SUPERLATIVE_ENDS):
        return False
    return _SUPERLATIVE.search(_NOT_SUPERLATIVE.sub("", lowered)) is not None


def _is_dangling(words: Sequence[str]) -> bool:
    for word in words:
        if word in _POINTING:
            return True
        if word not in _FUNCTION_WORDS:
            return False
    return False


def _num_names(text: str, words: Sequence[str]) -> int:
    """How many of the text's words have a capital letter, without those that begin a sentence, and without "I"."""
    num = sum([word[0].isupper() and word != "I" for word in words])
    if num:
        firsts = [found[0] for found in map(_WORD.search, _SENTENCE.split(text)) if found is not None]
        num -= sum([word[0].isupper() and word != "I" for word in firsts])
    return num


def _rarity(content: Sequence[str], counts: WordCounts | None) -> tuple[float, float, float]:
    if counts is None or not content:
        return math.nan, math.nan, math.nan
    found = [counts.documents.get(word, 0) for word in content]
    idf = [counts.idf_of(num) for num in found]
    return found.count(0) / len(content), max(idf), sum(idf) / len(idf)
