"""Text to the terms that the lexical index holds and is asked for. A change here needs a new `TERMS_VERSION`."""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass

from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Tokenizer

TERMS_VERSION = 1

_MAX_TERM_CHARS = 64
_WORD = r"[\p{L}\p{N}\p{M}]+"
# Scripts written without blanks, and Hangul, whose words carry their particles.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_SCRIPT_RUNS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")


def _analyzer(pattern: str) -> TextAnalyzer:
    builder = TextAnalyzerBuilder(Tokenizer.regex(pattern)).filter(Filter.lowercase())
    return builder.filter(Filter.ascii_fold()).build()


_words = _analyzer(_WORD)
_identifiers = _analyzer(rf"{_WORD}(?:[._/:@'’-]{_WORD})+")
_stemmer = TextAnalyzerBuilder(Tokenizer.whitespace()).filter(Filter.stemmer("english")).build()


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms in the order of the text, repetitions included.

    `stems` are words by their English stem; of a script without blanks, characters and pairs of them. `exact` are the
    words that stemming changed, as they were written, and identifiers such as `fly.toml` or `wg_key` as a whole.
    """

    stems: list[str]
    exact: list[str]


def terms_of(text: str, *, is_query: bool = False) -> Terms:
    """The terms of a text: lower-case, without accents, each cut to 64 characters.

    Any string will do; half a surrogate pair separates words. With `is_query`, single characters of a script without
    blanks are left out where a pair says more.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = unicodedata.normalize("NFKC", text)
    words: list[str] = []
    for word in _words.analyze(text):
        if word.isascii() or not _HAS_UNSPACED.search(word):
            words.append(word[:_MAX_TERM_CHARS])
        else:
            words += _split_scripts(word, is_query=is_query)
    stems = _stemmer.analyze(" ".join(words))
    exact = [word for word, stem in zip(words, stems, strict=True) if word != stem]
    return Terms(stems, exact + [whole[:_MAX_TERM_CHARS] for whole in _identifiers.analyze(text)])


def _split_scripts(word: str, *, is_query: bool) -> list[str]:
    terms: list[str] = []
    for run in _SCRIPT_RUNS.findall(word):
        if not _HAS_UNSPACED.match(run):
            terms.append(run[:_MAX_TERM_CHARS])
            continue
        if not is_query or len(run) == 1:
            terms += run
        terms += map("".join, itertools.pairwise(run))
    return terms
