"""What the shape of a search's result says about a question.

Raw cosines do not carry over from one encoder or knowledge base to another; signals that begin with `z_` are in
standard deviations of the best scores that unrelated questions reach in the same index (ScoreBackground).
NQC: Shtok et al., ACM TOIS 2012. WIG: Zhou and Croft, SIGIR 2007; the background's mean stands for the corpus score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, nan, sqrt

import numpy as np

from engine.routing.signals.lexical import MAX_CHARS, distinct_words
from engine.routing.signals.table import SignalTable
from engine.values import Evidence, Passage, ScoreBackground
from kernels.word_runs import missing_words

# A collection whose unrelated questions all score alike would make any z-score huge; cosine noise is about this wide.
MIN_STD = 0.02
# Best scores that are looked at, so that a request for many passages has the same signals as one for few.
MAX_RANKS = 10
NAMES = (
    "search.best",
    "search.gap",
    "search.gap_rest",
    "search.z_best",
    "search.z_gap",
    "search.z_spread",
    "search.z_mean",
    "search.entropy",
    "search.documents",
    "search.document_share",
    "search.coverage",
    "search.coverage_all",
    "search.agreement",
    "search.coherence",
)
_UNKNOWN = (nan,) * len(NAMES)


@dataclass(frozen=True, slots=True)
class Search:
    """A question and what its search found.

    `similarities` are cosines, descending; `passages` ranked. agreement: share of the best chunks by meaning that are
    among the best by words, None where not both were asked. coherence: mean cosine between the best chunks by meaning.
    """

    question: str
    similarities: tuple[float, ...]
    passages: tuple[Passage, ...]
    background: ScoreBackground | None
    agreement: float | None = None
    coherence: float | None = None

    @classmethod
    def of(cls, question: str, evidence: Evidence, max_passages: int | None = None) -> Search:
        """What the retriever answered for `question`, of which the first `max_passages` are looked at."""
        found, clues = evidence.passages[:max_passages], evidence.clues
        known = (None, None) if clues is None else (clues.agreement, clues.coherence)
        return cls(question, evidence.similarities, found, evidence.background, *known)


@dataclass(frozen=True, slots=True)
class ScoreShape:
    """Signals of one search.

    best: highest cosine similarity. z: its distance from `background.mean` in standard deviations, None without a
    background. gap: best minus the mean of the rest. num_documents: distinct documents among the passages.
    """

    best: float
    z: float | None
    gap: float
    num_documents: int


def score_shape(
    similarities: Sequence[float], passages: Sequence[Passage], background: ScoreBackground | None
) -> ScoreShape | None:
    """Signals of a search, or None when nothing was found. `similarities` are cosines, descending."""
    if not similarities:
        return None
    scores = np.array(similarities, dtype=np.float64)  # [K]
    best = float(scores[0])
    z = None if background is None else (best - background.mean) / max(background.std, MIN_STD)
    gap = best - float(scores[1:].mean()) if len(scores) > 1 else 0.0
    return ScoreShape(best, z, gap, len({passage.document for passage in passages}))


def search_signals(searches: Sequence[Search | None]) -> SignalTable:
    """Signals of each search; all NaN where none was made or nothing found, and each NaN where its input is missing.

    best, gap, gap_rest: the best cosine, less the second, less the mean of the others. z_best, z_gap: the same by the
    background. z_spread (NQC) and z_mean (WIG): standard deviation and mean of the scores. entropy: of softmax(z), over
    that of equal scores: 1 is no favourite. documents: distinct ones among the passages, and their share. coverage:
    share of the question's content words in the best passage, and in any. agreement, coherence: as of Search; a low
    coherence is several subjects.
    """
    rows = [
        (*_score_row(search), *_passage_row(search))
        if search is not None and (search.similarities or search.passages)
        else _UNKNOWN
        for search in searches
    ]
    values = np.array(rows, dtype=np.float64)
    return SignalTable(NAMES, values.reshape(len(searches), len(NAMES)))


# A few scores are summed faster one by one than as arrays, and alike in a batch of any size.
def _score_row(search: Search) -> tuple[float, ...]:
    """The first 8 signals."""
    scores, background = search.similarities[:MAX_RANKS], search.background
    num = len(scores)
    if not num:
        return (nan,) * 8
    best, total = scores[0], sum(scores)
    mean = total / num
    gap = rest = spread = nan
    if num > 1:
        gap = best - scores[1]
        rest = best - (total - best) / (num - 1)
        spread = sqrt(sum([(score - mean) ** 2 for score in scores]) / num)
    if background is None:
        return best, gap, rest, nan, nan, nan, nan, nan
    std = max(background.std, MIN_STD)
    z_best = (best - background.mean) / std
    z_mean = (mean - background.mean) / std
    return best, gap, rest, z_best, gap / std, spread / std, z_mean, _entropy(scores, std)


def _entropy(scores: Sequence[float], std: float) -> float:
    """In [0, 1]: entropy of softmax(scores / std) over that of equal scores; NaN for a single score."""
    if len(scores) < 2:
        return nan
    top = max(scores)
    # Of weights w with the sum W, the entropy is ln W - sum(w ln w) / W.
    logs = [(score - top) / std for score in scores]
    weights = [exp(each) for each in logs]
    whole = sum(weights)
    found = log(whole) - sum([weight * each for weight, each in zip(weights, logs, strict=True)]) / whole
    # Rounding may leave the range.
    return min(max(found / log(len(scores)), 0.0), 1.0)


def _passage_row(search: Search) -> tuple[float, ...]:
    """The last 6 signals."""
    passages = search.passages
    agreement = nan if search.agreement is None else search.agreement
    coherence = nan if search.coherence is None else search.coherence
    if not passages:
        return nan, nan, nan, nan, agreement, coherence
    documents = len({passage.document for passage in passages})
    best, some = _coverage(search.question, passages)
    return documents, documents / len(passages), best, some, agreement, coherence


def _coverage(question: str, passages: Sequence[Passage]) -> tuple[float, float]:
    """Share of the question's content words in the first passage, and in any; NaN for a question without such words."""
    words = distinct_words(question)
    if not words:
        return nan, nan
    first, *others = (f"{each.title} {each.heading} {each.text[:MAX_CHARS]}" for each in passages)
    missing = _missing(words, first)
    # A blank is in no word, so texts may be looked through as one.
    never = _missing(missing, " ".join(others)) if missing and others else missing
    return (len(words) - len(missing)) / len(words), (len(words) - len(never)) / len(words)


def _missing(words: Sequence[str], text: str) -> Sequence[str]:
    """Those of `words` that `text` has not as whole words: next to what is neither letter nor digit."""
    lowered = text.lower()
    if "".join(words).isalnum():
        return missing_words(words, lowered)
    left = missing_words([word for word in words if word.isalnum()], lowered)
    return [*left, *(word for word in words if not (word.isalnum() or _has_joined(word, lowered)))]


def _has_joined(word: str, lowered: str) -> bool:
    """Whether a word with marks inside, as of "don't", stands in `lowered`."""
    # Between blanks, every character of a word has a neighbour.
    padded = f" {lowered} ".replace("’", "'")
    start = padded.find(word)
    while start >= 0:
        if not padded[start - 1].isalnum() and not padded[start + len(word)].isalnum():
            return True
        start = padded.find(word, start + 1)
    return False
